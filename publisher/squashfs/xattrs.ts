import { squashWriterErrors } from './errors.ts'
import { MetadataTable, type Place, pointers, referenceOf } from './metadata.ts'

/** The xattr table: each set of attributes once, and each longer value once. */

const PREFIXES = ['user.', 'trusted.', 'security.'] as const
/** The value stands elsewhere; what follows is a reference to it. */
const OUT_OF_LINE = 0x100
/** A reference takes 8 bytes: shorter values are simply repeated. */
const SHARED_FROM = 9
/** The kernel's limits: XATTR_NAME_MAX for the whole name, XATTR_SIZE_MAX for a value. */
const MAX_NAME = 255
const MAX_VALUE = 65536
/** What the reader takes of one inode. */
const MAX_COUNT = 1024
const MAX_TOTAL = 1 << 20
const NONE = 0xffffffff

type Xattrs = ReadonlyMap<string, Uint8Array>

export class XattrTable {
  readonly #table: MetadataTable
  readonly #level: number
  readonly #sets = new Map<string, number>()
  readonly #values = new Map<string, Place>()
  readonly #ids: Buffer[] = []

  constructor(level: number) {
    this.#level = level
    this.#table = new MetadataTable(level)
  }

  /**
   * The number of this set, as inodes hold it; 0xffffffff for an empty one.
   * @param path whose attributes they are, for messages
   * @throws SQUASHFS_ATTRIBUTE
   */
  add(xattrs: Xattrs, path: string): number {
    if (xattrs.size === 0) return NONE
    const pairs = [...xattrs].map(([name, value]) => checked(name, value, path))
    const total = pairs.reduce((sum, { value }) => sum + value.length, 0)
    if (pairs.length > MAX_COUNT || total > MAX_TOTAL)
      throw refused(
        path,
        `has ${pairs.length} xattrs of ${total} bytes, at most ${MAX_COUNT} of ${MAX_TOTAL} are written`,
      )
    const key = pairs
      .map(({ prefix, name, value }) => `${prefix} ${name.length} ${value.length} ${bytesOf(name)}${bytesOf(value)}`)
      .join('')
    const known = this.#sets.get(key)
    if (known !== undefined) return known
    const number = this.#ids.length
    this.#sets.set(key, number)
    let place: Place | undefined
    let size = 0
    for (const { prefix, name, value } of pairs) {
      const head = Buffer.alloc(4)
      const shared = value.length < SHARED_FROM ? undefined : this.#values.get(bytesOf(value))
      head.writeUInt16LE(prefix | (shared === undefined ? 0 : OUT_OF_LINE))
      head.writeUInt16LE(name.length, 2)
      const at = this.#table.append(Buffer.concat([head, name]))
      place ??= at
      size += head.length + name.length + this.#value(value, shared)
    }
    const id = Buffer.alloc(16)
    id.writeBigUInt64LE(referenceOf(place ?? { block: 0, offset: 0 }))
    id.writeUInt32LE(pairs.length, 8)
    id.writeUInt32LE(size, 12)
    this.#ids.push(id)
    return number
  }

  /**
   * The whole table as it stands at `at` in the image.
   * @returns undefined when no inode has attributes; `index` is what the superblock points at
   */
  finish(at: number): { readonly bytes: Buffer; readonly index: number } | undefined {
    if (this.#ids.length === 0) return undefined
    const values = this.#table.finish().bytes
    const ids = new MetadataTable(this.#level)
    ids.append(Buffer.concat(this.#ids))
    const blocks = ids.finish()
    const head = Buffer.alloc(16)
    head.writeBigUInt64LE(BigInt(at))
    head.writeUInt32LE(this.#ids.length, 8)
    const index = at + values.length + blocks.bytes.length
    return { bytes: Buffer.concat([values, blocks.bytes, head, pointers(blocks.starts, at + values.length)]), index }
  }

  /** Appends a value, or a reference to it; gives the bytes it took. */
  #value(value: Uint8Array, shared: Place | undefined): number {
    const body = Buffer.alloc(4 + (shared === undefined ? value.length : 8))
    body.writeUInt32LE(body.length - 4)
    if (shared === undefined) body.set(value, 4)
    else body.writeBigUInt64LE(referenceOf(shared), 4)
    const place = this.#table.append(body)
    if (shared === undefined && value.length >= SHARED_FROM) this.#values.set(bytesOf(value), place)
    return body.length
  }
}

function checked(full: string, value: Uint8Array, path: string) {
  const prefix = PREFIXES.findIndex((start) => full.startsWith(start))
  const name = Buffer.from(full.slice(PREFIXES[prefix]?.length ?? 0))
  if (prefix < 0 || name.length === 0 || full.includes('\0') || Buffer.byteLength(full) > MAX_NAME)
    throw refused(
      path,
      `has the xattr ${JSON.stringify(full)}; user., trusted. and security. names of at most ${MAX_NAME} bytes can be held`,
    )
  if (value.length > MAX_VALUE)
    throw refused(path, `has ${value.length} bytes in the xattr ${full}, at most ${MAX_VALUE} can be held`)
  return { prefix, name, value }
}

const bytesOf = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')

function refused(path: string, how: string): Error {
  return squashWriterErrors.SQUASHFS_ATTRIBUTE(`/${path} ${how}`)
}
