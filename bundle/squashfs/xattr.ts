import { squashErrors } from './errors.ts'
import { Cursor, IndexedTable, type Metadata, u64 } from './metadata.ts'
import { corrupt, type Region, type Superblock } from './superblock.ts'
import { decodeText } from './text.ts'

export type Xattrs = ReadonlyMap<string, Uint8Array>

const PREFIXES = ['user.', 'trusted.', 'security.'] as const
/** The value stands elsewhere; what follows is a reference to it. */
const OUT_OF_LINE = 0x100
const MAX_NAME = 255
/** The kernel's limits for one value and (XATTR_LIST_MAX) for all names; the sum of values is a limit of ours. */
const MAX_VALUE = 65536
const MAX_TOTAL = 1 << 20
const MAX_COUNT = 1024
/** Sets kept: neighbours often share one. */
const CACHED_SETS = 16

const EMPTY: Xattrs = new Map()

export class XattrTable {
  readonly #metadata: Metadata
  readonly #region: Region
  readonly #ids: IndexedTable
  readonly #cache = new Map<number, Xattrs>()

  private constructor(metadata: Metadata, region: Region, ids: IndexedTable) {
    this.#metadata = metadata
    this.#region = region
    this.#ids = ids
  }

  /** @throws SQUASHFS_CORRUPT */
  static async open(metadata: Metadata, superblock: Superblock): Promise<XattrTable | undefined> {
    const at = superblock.xattrHeader
    if (at === undefined) return undefined
    const header = await metadata.raw(at, 16)
    const start = u64(header, 0)
    if (start > at) throw corrupt(`the xattr table starts at ${start}, behind its index at ${at}`)
    const ids = new IndexedTable(metadata, { index: at + 16, count: header.readUInt32LE(8) }, 16, 'xattr id')
    return new XattrTable(metadata, { start, end: at }, ids)
  }

  /** Where the first metadata block stands. */
  get start(): number {
    return this.#region.start
  }

  /** The attributes of set `index`, sorted by name. @throws SQUASHFS_CORRUPT, SQUASHFS_NAME, SQUASHFS_TOO_LARGE */
  async get(index: number | undefined): Promise<Xattrs> {
    if (index === undefined) return EMPTY
    const cached = this.#cache.get(index)
    if (cached !== undefined) return cached
    const entry = await this.#ids.entry(index)
    const reference = u64(entry, 0)
    const count = entry.readUInt32LE(8)
    if (count > MAX_COUNT) throw squashErrors.SQUASHFS_TOO_LARGE(`${count} xattrs on one inode, at most ${MAX_COUNT}`)
    const xattrs = count === 0 ? EMPTY : await this.#read(reference, count)
    if (this.#cache.size >= CACHED_SETS) this.#cache.clear()
    this.#cache.set(index, xattrs)
    return xattrs
  }

  async #read(reference: number, count: number): Promise<Xattrs> {
    const cursor = this.#cursor(reference)
    const found = new Map<string, Uint8Array>()
    let total = 0
    for (let n = 0; n < count; n++) {
      const head = await cursor.take(4)
      const type = head.readUInt16LE(0)
      const prefix = PREFIXES[type & ~OUT_OF_LINE]
      const length = head.readUInt16LE(2)
      if (prefix === undefined) throw corrupt(`xattr type ${type}`)
      if (length === 0 || length > MAX_NAME) throw corrupt(`an xattr's name has ${length} bytes`)
      const name = prefix + decodeText(await cursor.take(length), 'the name of an xattr')
      const value = await this.#value(cursor, (type & OUT_OF_LINE) !== 0)
      if (found.has(name)) throw corrupt(`the xattr ${name} stands twice on one inode`)
      total += value.length
      if (total > MAX_TOTAL) throw squashErrors.SQUASHFS_TOO_LARGE(`the xattrs of one inode exceed ${MAX_TOTAL} bytes`)
      found.set(name, value)
    }
    return new Map([...found].sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b))))
  }

  async #value(cursor: Cursor, outOfLine: boolean): Promise<Uint8Array> {
    const length = (await cursor.take(4)).readUInt32LE(0)
    if (outOfLine) {
      if (length !== 8) throw corrupt(`a reference to an xattr's value has ${length} bytes, 8 were wanted`)
      return this.#value(this.#cursor(u64(await cursor.take(8), 0)), false)
    }
    if (length > MAX_VALUE) throw corrupt(`an xattr's value has ${length} bytes, at most ${MAX_VALUE} can be`)
    return Uint8Array.from(await cursor.take(length))
  }

  #cursor(reference: number): Cursor {
    const position = { block: this.#region.start + Math.floor(reference / 65536), offset: reference % 65536 }
    return new Cursor(this.#metadata, this.#region, position)
  }
}
