import { ociErrors } from '../oci/errors.ts'
import { MAX_XATTR } from '../oci/limits.ts'
import { decodeName, show } from './names.ts'

/** PAX extended headers (POSIX.1-2001): the records before an entry that replace or add to its header. */

export interface PaxRecords {
  path?: string
  linkpath?: string
  size?: number
  uid?: number
  gid?: number
  mtime?: number
  /** In the order of the records. */
  readonly xattrs: Map<string, Uint8Array>
  /** Names of xattrs given in the forms of libarchive and of old star, which mostly repeat those above. */
  readonly others: Set<string>
  /** A POSIX access control list was given; SquashFS has no place for it. */
  acl: boolean
}

/** Keys that change neither what is written nor where. */
const HARMLESS =
  /^(?:atime|ctime|comment|uname|gname|charset|LIBARCHIVE\..+|SCHILY\.(?:fflags|dev|ino|nlink|filetype)|RHT\.security\.selinux)$/
const ACL = /^SCHILY\.acl\.(?:access|default|ace)$/
const XATTR = 'SCHILY.xattr.'
/** The same in base64, its name with %XX (libarchive, archive_write_set_format_pax.c). */
const LIBARCHIVE_XATTR = 'LIBARCHIVE.xattr.'
const RHT_SELINUX = 'RHT.security.selinux'

/**
 * Reads the body of an `x` header.
 * @throws LAYER_HEADER for anything malformed, given twice or unknown; LAYER_TYPE for sparse files
 */
export function parsePax(body: Uint8Array): PaxRecords {
  const out: PaxRecords = { xattrs: new Map(), others: new Set(), acl: false }
  const seen = new Set<string>()
  for (const [key, value] of records(body)) {
    if (seen.has(key)) throw ociErrors.LAYER_HEADER(`the PAX key ${show(key)} is given twice`)
    seen.add(key)
    take(out, key, value)
  }
  return out
}

/** Checks a global header: it may only hold what changes nothing. */
export function checkGlobalPax(body: Uint8Array): void {
  for (const [key] of records(body))
    if (!HARMLESS.test(key)) throw ociErrors.LAYER_HEADER(`a global PAX header sets ${show(key)}`)
}

function take(out: PaxRecords, key: string, value: Uint8Array): void {
  if (key.startsWith(XATTR)) {
    if (value.length > MAX_XATTR)
      throw ociErrors.LAYER_LIMIT(`the xattr ${show(key)} has ${value.length} bytes, at most ${MAX_XATTR} are kept`)
    out.xattrs.set(key.slice(XATTR.length), new Uint8Array(value))
  } else if (key.startsWith(LIBARCHIVE_XATTR)) out.others.add(percentDecoded(key.slice(LIBARCHIVE_XATTR.length)))
  else if (key === RHT_SELINUX) out.others.add('security.selinux')
  else if (key === 'path' || key === 'linkpath') out[key] = name(key, value)
  else if (key === 'size' || key === 'uid' || key === 'gid') out[key] = natural(key, value)
  else if (key === 'mtime') out.mtime = seconds(value)
  else if (key === 'hdrcharset') {
    // Names are checked to be UTF-8 whatever is said here.
  } else if (ACL.test(key)) out.acl = true
  else if (key.startsWith('GNU.sparse.')) throw ociErrors.LAYER_TYPE('a file is stored in the sparse form')
  else if (!HARMLESS.test(key)) throw ociErrors.LAYER_HEADER(`the PAX key ${show(key)} is not known`)
}

/** "LENGTH KEY=VALUE\n", where LENGTH counts the whole record in decimal. */
function* records(body: Uint8Array): Generator<[string, Uint8Array]> {
  let at = 0
  while (at < body.length) {
    const space = body.indexOf(0x20, at)
    const digits = space < 0 || space - at > 8 ? '' : latin1(body.subarray(at, space))
    const end = at + Number(digits)
    if (!/^[1-9][0-9]*$/.test(digits) || end > body.length || body[end - 1] !== 0x0a)
      throw ociErrors.LAYER_HEADER(`a PAX record at byte ${at} of its header is malformed`)
    const equals = body.subarray(0, end).indexOf(0x3d, space)
    if (equals < 0 || equals === space + 1)
      throw ociErrors.LAYER_HEADER(`a PAX record at byte ${at} of its header has no key`)
    yield [decodeName(body.subarray(space + 1, equals)), body.subarray(equals + 1, end - 1)]
    at = end
  }
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

function name(key: string, value: Uint8Array): string {
  if (value.length === 0 || value.includes(0)) throw ociErrors.LAYER_HEADER(`the PAX ${key} is empty or holds a NUL`)
  return decodeName(value)
}

function natural(key: string, value: Uint8Array): number {
  const digits = latin1(value)
  const result = Number(digits)
  if (!/^[0-9]{1,16}$/.test(digits) || !Number.isSafeInteger(result))
    throw ociErrors.LAYER_HEADER(`the PAX ${key} is ${show(digits)}, a whole number is wanted`)
  return result
}

/** Whole seconds; times before 1970 become 1970. */
function seconds(value: Uint8Array): number {
  const digits = latin1(value)
  const match = /^(-?)([0-9]{1,15})(?:\.[0-9]*)?$/.exec(digits)
  if (match === null) throw ociErrors.LAYER_HEADER(`the PAX mtime is ${show(digits)}`)
  return match[1] === '-' ? 0 : Number(match[2])
}
