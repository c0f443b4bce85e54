import { fromHex, KiB, MiB, type Sha256 } from '../base/bytes.ts'
import { bundleErrors } from './errors.ts'
import { BLOCK } from './tree.ts'
import type { Chunk, ChunkEncoding, ChunkIndex } from './types.ts'

/** The chunk index (docs/format.md): which pieces an image consists of, in order, and how each is stored. */

export const MAX_CHUNK = MiB
export const MAX_INDEX_BYTES = 64 * MiB
const MAGIC = 'BSTIDX01'
const HEAD = 24
/** Bytes of one chunk's entry. */
export const ENTRY = 76
/** In an entry, which it ends. */
const STORED_DIGEST = 44
const DIGEST = 32

const MIN_GROUP = 8 * KiB
const TARGET_GROUP = 8 * KiB
const MAX_GROUP = 256 * KiB
const FIXED = 128 * KiB

/** Bytes of an index of `count` chunks. */
export function indexSize(count: number): number {
  return HEAD + count * ENTRY
}

/** How many chunks an index of so many bytes has. */
export function indexCount(bytes: number): number {
  return Math.floor((bytes - HEAD) / ENTRY)
}

/** What an index begins with. */
export function indexHead(count: number, imageLength: number): Uint8Array {
  const bytes = Buffer.alloc(HEAD)
  bytes.write(MAGIC, 0, 'latin1')
  bytes.writeUInt32LE(count, 8)
  bytes.writeBigUInt64LE(BigInt(imageLength), 16)
  return bytes
}

/** Bytes of the data member that goes with an index. */
export function storedLength(index: ChunkIndex): number {
  const last = index.chunks.at(-1)
  return last === undefined ? 0 : last.storedOffset + last.storedLength
}

/** Refuses with BUNDLE_INDEX_INVALID what `decodeIndex` would refuse. */
export function encodeIndex(index: ChunkIndex): Uint8Array {
  const bytes = Buffer.alloc(indexSize(index.chunks.length))
  bytes.set(indexHead(index.chunks.length, index.imageLength))
  let at = HEAD
  for (const chunk of index.chunks) {
    bytes.set(fromHex(chunk.digest), at)
    bytes.writeUInt32LE(chunk.length, at + 32)
    bytes.writeUInt32LE(chunk.storedLength, at + 36)
    bytes.writeUInt32LE(chunk.encoding === 'zstd' ? 1 : 0, at + 40)
    bytes.set(fromHex(chunk.storedDigest), at + 44)
    at += ENTRY
  }
  decodeIndex(bytes)
  return bytes
}

/** Decodes an index whose bytes were verified; every rule of the format is checked. Its chunks cannot be copied by `...`. */
export function decodeIndex(input: Uint8Array): ChunkIndex {
  if (input.length < HEAD || input.length > MAX_INDEX_BYTES) throw invalid(`it has ${input.length} bytes`)
  // A copy: what was checked is what the digests are read from later, whatever becomes of the caller's memory.
  const bytes = Buffer.from(input)
  if (bytes.toString('latin1', 0, 8) !== MAGIC) throw invalid(`it does not start with ${MAGIC}`)
  const count = bytes.readUInt32LE(8)
  if (bytes.length !== indexSize(count))
    throw invalid(`it announces ${count} chunks, which take ${indexSize(count)} bytes, and has ${bytes.length}`)
  if (bytes.readUInt32LE(12) !== 0) throw invalid('bytes 12 to 15 are not zero')
  const imageLength = Number(bytes.readBigUInt64LE(16))
  if (!Number.isSafeInteger(imageLength) || imageLength < BLOCK || imageLength % BLOCK !== 0)
    throw invalid(`image length ${imageLength} is not a multiple of ${BLOCK}`)

  const chunks: Chunk[] = []
  const stored = Buffer.allocUnsafeSlow(count * DIGEST)
  let offset = 0
  let storedOffset = 0
  for (let i = 0; i < count; i++) {
    const chunk = decodeEntry({ bytes, stored }, i, offset, storedOffset)
    bytes.copy(stored, i * DIGEST, HEAD + i * ENTRY + STORED_DIGEST, HEAD + (i + 1) * ENTRY)
    chunks.push(chunk)
    offset += chunk.length
    storedOffset += chunk.storedLength
  }
  if (offset !== imageLength) throw invalid(`its chunks hold ${offset} bytes of an image of ${imageLength}`)
  return { imageLength, chunks }
}

/** The bytes of an index, and a copy of all its stored digests, one behind the other. */
interface IndexBytes {
  readonly bytes: Buffer
  readonly stored: Buffer
}

function decodeEntry(index: IndexBytes, i: number, offset: number, storedOffset: number): Chunk {
  const { bytes } = index
  const at = HEAD + i * ENTRY
  const length = bytes.readUInt32LE(at + 32)
  const storedLength = bytes.readUInt32LE(at + 36)
  const code = bytes.readUInt32LE(at + 40)
  if (length < 1 || length > MAX_CHUNK) throw invalid(`chunk ${i} has ${length} bytes`)
  if (code > 1) throw invalid(`chunk ${i} has unknown encoding ${code}`)
  const raw = code === 0
  const sameDigest = bytes.compare(bytes, at, at + 32, at + 44, at + 76) === 0
  if (raw && (storedLength !== length || !sameDigest)) throw invalid(`chunk ${i} is raw but differs as stored`)
  if (!raw && (storedLength < 1 || storedLength >= length))
    throw invalid(`chunk ${i} is compressed from ${length} to ${storedLength} bytes`)
  return new IndexedChunk(index, i, { offset, length, encoding: raw ? 'raw' : 'zstd', storedOffset, storedLength })
}

/**
 * A chunk whose digests stay in the index until somebody asks: of a large image they would be most of what the collector
 * has to carry about, and it grows the heap for them.
 */
class IndexedChunk implements Chunk {
  readonly offset: number
  readonly length: number
  readonly encoding: ChunkEncoding
  readonly storedOffset: number
  readonly storedLength: number
  readonly #index: IndexBytes
  readonly #number: number

  constructor(index: IndexBytes, number: number, facts: Omit<Chunk, 'digest' | 'storedDigest'>) {
    this.offset = facts.offset
    this.length = facts.length
    this.encoding = facts.encoding
    this.storedOffset = facts.storedOffset
    this.storedLength = facts.storedLength
    this.#index = index
    this.#number = number
  }

  get digest(): Sha256 {
    const at = HEAD + this.#number * ENTRY
    return this.#index.bytes.toString('hex', at, at + DIGEST) as Sha256
  }

  get storedDigest(): Sha256 {
    const at = this.#number * DIGEST
    return this.#index.stored.toString('hex', at, at + DIGEST) as Sha256
  }

  /** False too when it takes more than one comparison to tell. */
  static areStored(first: IndexedChunk, last: IndexedChunk, count: number, digests: Buffer): boolean {
    const at = first.#number * DIGEST
    const index = first.#index.stored
    return (
      index === last.#index.stored &&
      last.#number - first.#number === count - 1 &&
      index.compare(digests, 0, count * DIGEST, at, at + count * DIGEST) === 0
    )
  }
}

/**
 * Are these the digests of what is stored of ascending chunks? One comparison for neighbours of one index.
 * @param digests 32 bytes for each of `count` chunks from `first` on
 */
export function areStoredDigests(chunks: readonly Chunk[], first: number, count: number, digests: Buffer): boolean {
  const head = chunks[first]
  const last = chunks[first + count - 1]
  if (
    head instanceof IndexedChunk &&
    last instanceof IndexedChunk &&
    IndexedChunk.areStored(head, last, count, digests)
  )
    return true
  for (let i = 0; i < count; i++)
    if (chunks[first + i]?.storedDigest !== digests.toString('hex', i * DIGEST, (i + 1) * DIGEST)) return false
  return true
}

function invalid(sentence: string) {
  return bundleErrors.BUNDLE_INDEX_INVALID(`chunk index: ${sentence}`)
}

/**
 * Where to cut an image of `length` bytes: yields the end of each chunk, ascending, the last one at `length`.
 *
 * `boundaries` are the ends (or starts) of the image's own blocks, strictly ascending in 0 .. length. Blocks are
 * grouped: a chunk ends behind the first one (a superblock, which holds the time of the build), behind a block of at least
 * 8 KiB, or, from 8 KiB on, behind a block whose length is 3 modulo 4; never beyond 256 KiB unless one block is larger. So where a chunk ends follows from the blocks near it, and the
 * cuts behind a changed file fall into step again. Without boundaries: every 128 KiB.
 */
export function* cutChunks(length: number, boundaries?: Iterable<number>): Generator<number> {
  if (boundaries === undefined) {
    for (let end = FIXED; end < length; end += FIXED) yield end
    if (length > 0) yield length
    return
  }
  let start = 0
  let previous = 0
  for (const end of endsOf(length, boundaries)) {
    const block = end - previous
    const first = previous === 0
    if (previous > start && end - start > MAX_GROUP) {
      yield previous
      start = previous
    }
    while (end - start > MAX_CHUNK) {
      start += MAX_GROUP
      yield start
    }
    if (first || block >= TARGET_GROUP || (end - start >= MIN_GROUP && block % 4 === 3) || end === length) {
      yield end
      start = end
    }
    previous = end
  }
}

/** The boundaries as block ends: checked, without a leading 0, with `length` as the last. */
function* endsOf(length: number, boundaries: Iterable<number>): Generator<number> {
  let previous = -1
  for (const boundary of boundaries) {
    if (!Number.isSafeInteger(boundary) || boundary <= previous || boundary > length)
      throw bundleErrors.IMAGE_BOUNDARIES(`boundary ${boundary} follows ${previous} in an image of ${length} bytes`)
    if (boundary > 0) yield boundary
    previous = boundary
  }
  if (previous < length && length > 0) yield length
}
