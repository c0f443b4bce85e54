import { ociErrors } from '../oci/errors.ts'
import { show } from './names.ts'

/** One 512-byte tar header: POSIX ustar (with PAX before it) and GNU. Anything two readers could differ on is refused. */

export const BLOCK = 512

export interface Header {
  /** Name and link name as bytes, without the terminating NUL. */
  readonly name: Uint8Array
  readonly link: Uint8Array
  readonly type: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly mtime: number
  readonly rdev: readonly [number, number]
}

/** Reads a header block that is not all zeros. */
export function parseHeader(block: Uint8Array): Header {
  const gnu = isAt(block, 257, 'ustar  \0')
  if (!gnu && !isAt(block, 257, 'ustar\u000000'))
    throw ociErrors.LAYER_HEADER('a header has neither the POSIX nor the GNU tar mark')
  checkSum(block)
  // Schily's old "star" puts times where POSIX has the end of the prefix.
  if (!gnu && isAt(block, 508, 'tar\0')) throw ociErrors.LAYER_HEADER('a header is in the old star form')
  const prefix = gnu ? new Uint8Array(0) : text(block, 345, 155, 'prefix')
  const last = text(block, 0, 100, 'name')
  return {
    name: prefix.length === 0 ? last : Buffer.concat([prefix, Buffer.from('/'), last]),
    link: text(block, 157, 100, 'link name'),
    type: String.fromCharCode(block[156] ?? 0),
    // Old writers put the file type above the permission bits.
    mode: number(block, 100, 8, 'mode') & 0o7777,
    uid: number(block, 108, 8, 'uid'),
    gid: number(block, 116, 8, 'gid'),
    size: number(block, 124, 12, 'size'),
    mtime: number(block, 136, 12, 'mtime'),
    rdev: [number(block, 329, 8, 'device number'), number(block, 337, 8, 'device number')],
  }
}

export function isZero(block: Uint8Array): boolean {
  for (const byte of block) if (byte !== 0) return false
  return true
}

function isAt(block: Uint8Array, at: number, wanted: string): boolean {
  for (let i = 0; i < wanted.length; i++) if (block[at + i] !== wanted.charCodeAt(i)) return false
  return true
}

function checkSum(block: Uint8Array): void {
  let sum = 8 * 0x20
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += block[i] ?? 0
  if (number(block, 148, 8, 'checksum') !== sum) throw ociErrors.LAYER_HEADER('a header has a wrong checksum')
}

function text(block: Uint8Array, at: number, length: number, field: string): Uint8Array {
  const bytes = block.subarray(at, at + length)
  const end = bytes.indexOf(0)
  if (end < 0) return bytes
  // Bytes behind the NUL: one reader stops there, another does not.
  if (!isZero(bytes.subarray(end))) throw ociErrors.LAYER_HEADER(`a header has bytes behind the end of its ${field}`)
  return bytes.subarray(0, end)
}

/** Octal digits closed by space or NUL, or GNU's base-256. An empty field is 0. */
function number(block: Uint8Array, at: number, length: number, field: string): number {
  const first = block[at] ?? 0
  if (first >= 0x80) return base256(block, at, length, field)
  let digits = ''
  for (let i = at; i < at + length; i++) digits += String.fromCharCode(block[i] ?? 0)
  const match = /^ *([0-7]*)[ \0]*$/.exec(digits)
  const value = match === null ? Number.NaN : Number.parseInt(`0${match[1]}`, 8)
  if (Number.isSafeInteger(value)) return value
  throw ociErrors.LAYER_HEADER(`a header has the ${field} ${show(digits)}, octal digits are wanted`)
}

function base256(block: Uint8Array, at: number, length: number, field: string): number {
  const negative = block[at] === 0xff
  if (!negative && block[at] !== 0x80) throw ociErrors.LAYER_HEADER(`a header has a malformed binary ${field}`)
  if (negative) {
    // Only times go below zero; times before 1970 become 1970.
    if (field === 'mtime') return 0
    throw ociErrors.LAYER_HEADER(`a header has a negative ${field}`)
  }
  let value = 0
  for (let i = at + 1; i < at + length; i++) {
    value = value * 256 + (block[i] ?? 0)
    if (!Number.isSafeInteger(value)) throw ociErrors.LAYER_HEADER(`a header has a ${field} above 2^53`)
  }
  return value
}
