import { contentsErrors } from '../contents-errors.ts'

/** What an rpm header says of its package: a table of tags, then their data (rpm.org, "RPM V4 package format"). */

const TAGS = { name: 1000, version: 1001, release: 1002, epoch: 1003, license: 1014, arch: 1022, source: 1044 } as const
const INT32 = 4
const STRING = 6
const I18N_STRING = 9
const ENTRY = 16
const MAX_TEXT = 4096

export interface RpmHeader {
  readonly name: string
  /** "[EPOCH:]VERSION-RELEASE" */
  readonly version: string
  readonly epoch: number | undefined
  /** Undefined for what is not software: imported keys. */
  readonly arch: string | undefined
  readonly license: string | undefined
  /** "bash-5.2.26-1.fc40.src.rpm" */
  readonly source: string | undefined
}

/**
 * Reads a header as it stands in an rpm database.
 * @param path of the database, for messages
 * @throws PACKAGES_INVALID
 */
export function parseRpmHeader(bytes: Uint8Array, path: string): RpmHeader {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const bad = (what: string): Error => contentsErrors.PACKAGES_INVALID(`/${path}: a package header ${what}`)
  if (buffer.length < 8) throw bad('is cut short')
  const count = buffer.readUInt32BE(0)
  const data = 8 + count * ENTRY
  if (data + buffer.readUInt32BE(4) > buffer.length) throw bad('claims more than there is')
  const text = new Map<number, string>()
  let epoch: number | undefined
  const wanted: readonly number[] = Object.values(TAGS)
  for (let at = 8; at < data; at += ENTRY) {
    const tag = buffer.readUInt32BE(at)
    if (!wanted.includes(tag)) continue
    const type = buffer.readUInt32BE(at + 4)
    const start = data + buffer.readUInt32BE(at + 8)
    if (type === INT32 && tag === TAGS.epoch && start + 4 <= buffer.length) epoch = buffer.readUInt32BE(start)
    else if (type === STRING || type === I18N_STRING) {
      const end = buffer.indexOf(0, start)
      if (end < 0 || start >= buffer.length || end - start > MAX_TEXT) throw bad(`has no end to its tag ${tag}`)
      text.set(tag, buffer.toString('utf8', start, end))
    }
  }
  const name = text.get(TAGS.name)
  const version = text.get(TAGS.version)
  const release = text.get(TAGS.release)
  if (name === undefined || version === undefined || release === undefined) throw bad('lacks name, version or release')
  return {
    name,
    version: `${epoch === undefined ? '' : `${epoch}:`}${version}-${release}`,
    epoch,
    arch: text.get(TAGS.arch),
    license: text.get(TAGS.license),
    source: text.get(TAGS.source),
  }
}
