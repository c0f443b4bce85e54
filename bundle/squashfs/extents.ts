import type { Squashfs } from './image.ts'
import { SUPERBLOCK_BYTES } from './superblock.ts'

/**
 * An image as a row of pieces without gaps, in the order in which they stand: what a patch between images is made of.
 * It follows from the image alone, so publisher and device get the same one.
 */

/** Bytes as they stand; a compressed block of data; a block of metadata, compressed, behind its two-byte header. */
export type ExtentKind = 'raw' | 'data' | 'meta'
const KINDS = ['raw', 'data', 'meta'] as const satisfies readonly ExtentKind[]

const METADATA_BYTES = 8192
const PLAIN_METADATA = 0x8000

export interface Extent {
  readonly at: number
  readonly length: number
  readonly kind: ExtentKind
}

/** A row of extents in 13 bytes each. */
export class Extents {
  /** Bytes that a compressed block of data unpacks to, at most. */
  readonly blockSize: number
  #starts = new Float64Array(1024)
  #kinds = new Uint8Array(1024)
  #count = 0
  #end = 0

  constructor(blockSize: number) {
    this.blockSize = blockSize
  }

  get count(): number {
    return this.#count
  }

  /** Where the next one starts: the end of what is covered. */
  get end(): number {
    return this.#end
  }

  add(length: number, kind: ExtentKind): void {
    if (length <= 0) return
    if (this.#count === this.#starts.length) {
      const starts = new Float64Array(this.#count * 2)
      starts.set(this.#starts)
      this.#starts = starts
      const kinds = new Uint8Array(this.#count * 2)
      kinds.set(this.#kinds)
      this.#kinds = kinds
    }
    this.#starts[this.#count] = this.#end
    this.#kinds[this.#count++] = KINDS.indexOf(kind)
    this.#end += length
  }

  get(index: number): Extent {
    const at = this.#starts[index] ?? 0
    const end = index + 1 < this.#count ? (this.#starts[index + 1] ?? 0) : this.#end
    return { at, length: end - at, kind: KINDS[this.#kinds[index] ?? 0] ?? 'raw' }
  }

  /** The number of the extent that holds byte `at` of the image. */
  find(at: number): number {
    let low = 0
    let high = this.#count - 1
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      if ((this.#starts[middle] ?? 0) <= at) low = middle
      else high = middle - 1
    }
    return low
  }

  /** Bytes of content that an extent stands for, at most. */
  stride(index: number): number {
    const { length, kind } = this.get(index)
    return kind === 'raw' ? length : kind === 'meta' ? METADATA_BYTES : this.blockSize
  }
}

/** Raw stretches are cut to this, so that no piece needs much memory. */
const MAX_RAW = 128 * 1024

function addRaw(extents: Extents, end: number): void {
  while (extents.end < end) extents.add(Math.min(MAX_RAW, end - extents.end), 'raw')
}

/** The extents of an image that is no SquashFS image, or none that can be read. */
export function plainExtents(size: number): Extents {
  const extents = new Extents(MAX_RAW)
  addRaw(extents, size)
  return extents
}

/**
 * The extents of an image of `size` bytes. What does not stand where a writer of today puts it is raw.
 * @throws the errors of `Squashfs`
 */
export async function listExtents(image: Squashfs, size: number): Promise<Extents> {
  const { superblock } = image
  const { bytesUsed, inodeTable, fragments, ids, xattrHeader, exportTable, inodes, blockSize } = superblock
  const extents = new Extents(blockSize)
  addRaw(extents, SUPERBLOCK_BYTES)

  const found: number[] = []
  const lengths = new Map<number, number>()
  for await (const { at, length, plain } of image.storedBlocks()) {
    if (plain || lengths.has(at)) continue
    lengths.set(at, length)
    found.push(at)
  }
  found.sort((a, b) => a - b)
  for (const at of found) {
    const length = lengths.get(at) ?? 0
    // Blocks of an honest image do not overlap; one that does is left raw.
    if (at < extents.end || at + length > inodeTable.start) continue
    addRaw(extents, at)
    extents.add(length, 'data')
  }
  addRaw(extents, inodeTable.start)

  const pointers = (count: number, entry: number): number => Math.ceil((count * entry) / METADATA_BYTES) * 8
  const arrays = [{ at: ids.index, length: pointers(ids.count, 4) }]
  if (fragments.count > 0) arrays.push({ at: fragments.index, length: pointers(fragments.count, 16) })
  if (exportTable !== undefined) arrays.push({ at: exportTable, length: pointers(inodes, 8) })
  if (xattrHeader !== undefined && xattrHeader + 16 <= bytesUsed) {
    const count = Buffer.from(await image.raw(xattrHeader, 16)).readUInt32LE(8)
    arrays.push({ at: xattrHeader, length: 16 + pointers(count, 16) })
  }
  for (const { at, length } of arrays.sort((a, b) => a.at - b.at)) {
    await addMetadata(image, extents, Math.min(at, bytesUsed))
    addRaw(extents, Math.min(at + length, bytesUsed))
  }
  addRaw(extents, size)
  return extents
}

/** A chain of metadata blocks up to `end`; raw from where it does not hold. */
async function addMetadata(image: Squashfs, extents: Extents, end: number): Promise<void> {
  while (extents.end + 2 <= end) {
    const header = Buffer.from(await image.raw(extents.end, 2)).readUInt16LE(0)
    const length = 2 + (header & ~PLAIN_METADATA)
    if (length === 2 || length > 2 + METADATA_BYTES || extents.end + length > end) break
    extents.add(length, (header & PLAIN_METADATA) === 0 ? 'meta' : 'raw')
  }
  addRaw(extents, end)
}
