import type { Unpack } from './codec.ts'
import { squashErrors } from './errors.ts'
import type { Inode } from './inode.ts'
import { Cursor, type IndexedTable, type Metadata, u64 } from './metadata.ts'
import type { Window } from './reader.ts'
import { corrupt, SUPERBLOCK_BYTES, type Superblock } from './superblock.ts'

/** Data blocks and fragments. In a size word, bit 24 means "stored as it is", 0 means "a block of zeros". */
const PLAIN = 1 << 24
const SIZE_MASK = PLAIN - 1
/** Sizes taken from the list at once. */
const BATCH = 512
/** Bytes of unpacked fragment blocks kept; at least two of them. */
const FRAGMENT_CACHE = 4 * 1024 * 1024

export interface ContentParts {
  readonly superblock: Superblock
  readonly metadata: Metadata
  readonly fragments: IndexedTable
  /** Over the data area, for blocks of files; and another, so that fragments do not break its sequence. */
  readonly blocks: Window
  readonly tails: Window
  readonly unpack: Unpack
}

export interface StoredBlock {
  /** Where in the image. */
  readonly at: number
  /** Stored bytes; 0 for a block of zeros. */
  readonly length: number
  readonly plain: boolean
}

export class Content {
  readonly #parts: ContentParts
  readonly #zeros: Buffer
  readonly #fragments = new Map<number, Buffer>()
  readonly #keep: number

  constructor(parts: ContentParts) {
    this.#parts = parts
    this.#zeros = Buffer.alloc(parts.superblock.blockSize)
    this.#keep = Math.max(2, FRAGMENT_CACHE / parts.superblock.blockSize)
  }

  /** The content of a file in pieces of at most one block, as views that must not be changed. @throws SQUASHFS_CORRUPT */
  async *read(inode: Inode): AsyncGenerator<Uint8Array> {
    const { file, number } = inode
    if (file === undefined) return
    const { blockSize } = this.#parts.superblock
    let left = file.size
    for await (const batch of this.#blocks(inode))
      for (const block of batch) {
        const length = Math.min(blockSize, left)
        left -= length
        yield block.length === 0 ? this.#zeros.subarray(0, length) : await this.#data(block, length, number)
      }
    if (left === 0) return
    if (file.fragment === undefined) throw corrupt(`inode ${number} lacks its last ${left} bytes`)
    const fragment = await this.#fragment(file.fragment.index)
    const { offset } = file.fragment
    if (offset + left > fragment.length)
      throw corrupt(`inode ${number} wants ${left} bytes at ${offset} of a fragment block of ${fragment.length}`)
    yield fragment.subarray(offset, offset + left)
  }

  /** The stored blocks of a file, in batches. @throws SQUASHFS_CORRUPT */
  async *#blocks(inode: Inode): AsyncGenerator<StoredBlock[]> {
    const { file, number } = inode
    if (file === undefined) return
    const { blockSize, inodeTable } = this.#parts.superblock
    const whole = file.fragment === undefined ? Math.ceil(file.size / blockSize) : Math.floor(file.size / blockSize)
    if (whole === 0) return
    const cursor = new Cursor(this.#parts.metadata, inodeTable, file.sizes)
    let at = file.start
    for (let left = whole; left > 0; ) {
      const count = Math.min(left, BATCH)
      const words = await cursor.take(count * 4)
      const batch: StoredBlock[] = []
      for (let n = 0; n < count; n++) {
        const block = this.#stored(at, words.readUInt32LE(n * 4), `inode ${number}`)
        at += block.length
        batch.push(block)
      }
      yield batch
      left -= count
    }
  }

  async #data(block: StoredBlock, length: number, number: number): Promise<Uint8Array> {
    const stored = await this.#parts.blocks.get(block.at, block.length)
    const bytes = block.plain ? stored : this.#parts.unpack(stored, length, block.at)
    if (bytes.length !== length)
      throw corrupt(`a block of inode ${number} unpacks to ${bytes.length} bytes, ${length} were wanted`)
    return bytes
  }

  async #fragment(index: number): Promise<Buffer> {
    const cached = this.#fragments.get(index)
    if (cached !== undefined) return cached
    const block = await this.#fragmentBlock(index)
    const stored = await this.#parts.tails.get(block.at, block.length)
    const { blockSize } = this.#parts.superblock
    const bytes = block.plain ? Buffer.from(stored) : this.#parts.unpack(stored, blockSize, block.at)
    for (const oldest of this.#fragments.keys()) {
      if (this.#fragments.size < this.#keep) break
      this.#fragments.delete(oldest)
    }
    this.#fragments.set(index, bytes)
    return bytes
  }

  async #fragmentBlock(index: number): Promise<StoredBlock> {
    const entry = await this.#parts.fragments.entry(index)
    const block = this.#stored(u64(entry, 0), entry.readUInt32LE(8), `fragment ${index}`)
    if (block.length === 0) throw corrupt(`fragment ${index} is empty`)
    return block
  }

  #stored(at: number, word: number, whose: string): StoredBlock {
    const { blockSize, inodeTable } = this.#parts.superblock
    const length = word & SIZE_MASK
    const inside = at >= SUPERBLOCK_BYTES && at + length <= inodeTable.start
    if (word >= PLAIN * 2 || length > blockSize || (length > 0 && !inside))
      throw corrupt(`${whose} has a block of ${length} bytes at ${at} (size word ${word})`)
    return { at, length, plain: (word & PLAIN) !== 0 }
  }

  /** The stored blocks of a file, those of zeros aside. */
  async *stored(inode: Inode): AsyncGenerator<StoredBlock> {
    for await (const batch of this.#blocks(inode)) for (const block of batch) if (block.length > 0) yield block
  }

  /** The fragment block with the last part of a file, if it has one. */
  async tail(inode: Inode): Promise<StoredBlock | undefined> {
    const fragment = inode.file?.fragment
    return fragment === undefined ? undefined : this.#fragmentBlock(fragment.index)
  }

  /** The fragment blocks. */
  async *storedFragments(): AsyncGenerator<StoredBlock> {
    for (let index = 0; index < this.#parts.fragments.count; index++) yield await this.#fragmentBlock(index)
  }
}

/** 128 MiB of numbers: as many blocks as 64 GiB of 4 KiB blocks. */
const MAX_BOUNDARIES = 1 << 24

/** Collects offsets in bounded memory and gives them sorted, each once. */
export class Boundaries {
  #offsets = new Float64Array(1024)
  #count = 0

  /** @throws SQUASHFS_TOO_LARGE */
  add(offset: number): void {
    if (this.#count === this.#offsets.length) this.#grow()
    this.#offsets[this.#count++] = offset
  }

  #grow(): void {
    const sorted = this.sorted()
    if (sorted.length > MAX_BOUNDARIES / 2)
      throw squashErrors.SQUASHFS_TOO_LARGE(`more than ${MAX_BOUNDARIES / 2} stored blocks`)
    this.#offsets = new Float64Array(Math.max(sorted.length * 2, 1024))
    this.#offsets.set(sorted)
    this.#count = sorted.length
  }

  sorted(): number[] {
    const all = this.#offsets.subarray(0, this.#count).sort()
    const out: number[] = []
    for (const offset of all) if (offset !== out.at(-1)) out.push(offset)
    return out
  }
}
