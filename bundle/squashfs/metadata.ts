import type { Unpack } from './codec.ts'
import type { Window } from './reader.ts'
import { corrupt, type Region, type TablePlace } from './superblock.ts'

/** Metadata: a chain of blocks of up to 8192 bytes unpacked, each behind a 16-bit header. */

const METADATA_BYTES = 8192
const STORED_PLAIN = 0x8000
/** 256 blocks of 8 KiB: at most 2 MiB. */
const CACHED_BLOCKS = 256

export interface MetadataBlock {
  readonly bytes: Buffer
  /** Where the next block starts. */
  readonly next: number
}

/** Reads metadata blocks through a bounded cache (the least recently used one goes first). */
export class Metadata {
  readonly #window: Window
  readonly #unpack: Unpack
  readonly #cache = new Map<number, MetadataBlock>()

  constructor(window: Window, unpack: Unpack) {
    this.#window = window
    this.#unpack = unpack
  }

  /** Raw bytes of the image: pointer arrays and headers. */
  raw(at: number, length: number): Promise<Buffer> {
    return this.#window.get(at, length)
  }

  /** Where the blocks of a row start, as far as it holds: nothing is unpacked. */
  async *starts({ start, end }: Region): AsyncGenerator<number> {
    for (let at = start; at + 2 <= end; ) {
      const stored = (await this.#window.get(at, 2)).readUInt16LE(0) & ~STORED_PLAIN
      if (stored === 0 || stored > METADATA_BYTES || at + 2 + stored > end) return
      yield at
      at += 2 + stored
    }
  }

  /** The block at `at`, which must end at or before `end`. @throws SQUASHFS_CORRUPT */
  async block(at: number, end: number): Promise<MetadataBlock> {
    const cached = this.#cache.get(at)
    if (cached !== undefined) {
      this.#cache.delete(at)
      this.#cache.set(at, cached)
      return cached
    }
    if (at + 2 > end) throw corrupt(`a metadata block was wanted at ${at}, its table ends at ${end}`)
    const header = (await this.#window.get(at, 2)).readUInt16LE(0)
    const stored = header & ~STORED_PLAIN
    if (stored === 0 || stored > METADATA_BYTES || at + 2 + stored > end)
      throw corrupt(`the metadata block at ${at} has ${stored} stored bytes; its table ends at ${end}`)
    const raw = await this.#window.get(at + 2, stored)
    // A copy, so that a cached block does not keep the whole window alive.
    const bytes = (header & STORED_PLAIN) !== 0 ? Buffer.from(raw) : this.#unpack(raw, METADATA_BYTES, at)
    const block = { bytes, next: at + 2 + stored }
    this.#cache.set(at, block)
    if (this.#cache.size > CACHED_BLOCKS) {
      const [oldest] = this.#cache.keys()
      if (oldest !== undefined) this.#cache.delete(oldest)
    }
    return block
  }
}

/** A place in unpacked metadata: the stored block's absolute offset, and the offset within its unpacked bytes. */
export interface Position {
  readonly block: number
  readonly offset: number
}

/** Reads unpacked metadata from a position on, across block borders, never outside of its region. */
export class Cursor {
  readonly #metadata: Metadata
  readonly #region: Region
  #next: number
  #offset: number
  #current: MetadataBlock | undefined
  #block: number

  constructor(metadata: Metadata, region: Region, position: Position) {
    if (position.block < region.start || position.block >= region.end)
      throw corrupt(`a reference to ${position.block} is outside of ${region.start} to ${region.end}`)
    this.#metadata = metadata
    this.#region = region
    this.#block = position.block
    this.#next = position.block
    this.#offset = position.offset
  }

  /** Where the next byte will come from. */
  get position(): Position {
    const { bytes, next } = this.#current ?? { bytes: undefined, next: 0 }
    if (this.#offset === bytes?.length) return { block: next, offset: 0 }
    return { block: this.#block, offset: this.#offset }
  }

  /** The next `length` bytes (at most 64 KiB), as a view that must not be changed. @throws SQUASHFS_CORRUPT */
  async take(length: number): Promise<Buffer> {
    const block = await this.#ready()
    if (length <= block.bytes.length - this.#offset) {
      const view = block.bytes.subarray(this.#offset, this.#offset + length)
      this.#offset += length
      return view
    }
    const out = Buffer.allocUnsafe(length)
    let at = 0
    while (at < length) {
      const { bytes } = await this.#ready()
      const part = bytes.subarray(this.#offset, this.#offset + length - at)
      part.copy(out, at)
      at += part.length
      this.#offset += part.length
    }
    return out
  }

  /** The block that has the next byte. */
  async #ready(): Promise<MetadataBlock> {
    let block = this.#current
    if (block === undefined) {
      block = await this.#metadata.block(this.#next, this.#region.end)
      if (this.#offset >= block.bytes.length)
        throw corrupt(`a reference to byte ${this.#offset} of a metadata block of ${block.bytes.length}`)
    } else if (this.#offset === block.bytes.length) {
      this.#block = block.next
      block = await this.#metadata.block(block.next, this.#region.end)
      this.#offset = 0
    }
    this.#current = block
    this.#next = block.next
    return block
  }
}

/** A table of entries of equal size behind an array of pointers to its metadata blocks (ids, fragments, xattr ids). */
export class IndexedTable {
  readonly #metadata: Metadata
  readonly #place: TablePlace
  readonly #entryBytes: number
  readonly #perBlock: number
  readonly #what: string

  constructor(metadata: Metadata, place: TablePlace, entryBytes: number, what: string) {
    this.#metadata = metadata
    this.#place = place
    this.#entryBytes = entryBytes
    this.#perBlock = METADATA_BYTES / entryBytes
    this.#what = what
  }

  get count(): number {
    return this.#place.count
  }

  /** Entry `n`, as a view that must not be changed. @throws SQUASHFS_CORRUPT */
  async entry(n: number): Promise<Buffer> {
    if (n >= this.#place.count) throw corrupt(`${this.#what} ${n} of ${this.#place.count}`)
    const { bytes } = await this.#metadata.block(await this.#pointer(Math.floor(n / this.#perBlock)), this.#place.index)
    const at = (n % this.#perBlock) * this.#entryBytes
    if (at + this.#entryBytes > bytes.length) throw corrupt(`the ${this.#what} table ends before entry ${n}`)
    return bytes.subarray(at, at + this.#entryBytes)
  }

  /** Where the table's first metadata block stands; undefined when the table is empty. */
  async start(): Promise<number | undefined> {
    return this.#place.count === 0 ? undefined : this.#pointer(0)
  }

  async #pointer(n: number): Promise<number> {
    const value = u64(await this.#metadata.raw(this.#place.index + n * 8, 8), 0)
    if (value >= this.#place.index) throw corrupt(`the ${this.#what} table points at byte ${value}`)
    return value
  }
}

/** A 64-bit number as a safe integer. @throws SQUASHFS_CORRUPT when it is larger */
export function u64(b: Buffer, at: number): number {
  const value = b.readUInt32LE(at) + b.readUInt32LE(at + 4) * 2 ** 32
  if (!Number.isSafeInteger(value)) throw corrupt(`the number ${value} is too large`)
  return value
}
