import { MAX_SPANS, spanDigests } from '../base/hash-crew.ts'
import type { ByteRange, ByteSource } from '../base/source.ts'
import { areStoredDigests } from './chunks.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import type { Chunk } from './types.ts'
import { decompressExactly } from './zstd.ts'

/** Stored chunks: cut out of a data member, checked, unpacked. */

/**
 * The content of a chunk from its stored bytes: the stored digest is checked before anything is unpacked, the content
 * digest after. The result may share memory with `stored`.
 * @param digest of the stored bytes, when it is known already (`splitChunks`)
 * @throws BUNDLE_DIGEST, ZSTD_INVALID, ZSTD_LENGTH, ZSTD_TRAILING
 */
export function unpackChunk(chunk: Chunk, stored: Uint8Array, digest?: string): Uint8Array {
  checkStored(chunk, stored, digest)
  return unpackChecked(chunk, stored)
}

/** As `unpackChunk`, for stored bytes that were checked. */
export function unpackChecked(chunk: Chunk, stored: Uint8Array): Uint8Array {
  if (chunk.encoding === 'raw') return stored
  const content = decompressExactly(stored, chunk.length)
  if (sha256(content) !== chunk.digest)
    throw bundleErrors.BUNDLE_DIGEST(`the chunk at image byte ${chunk.offset} unpacks to other content than signed`)
  return content
}

/**
 * Refuses stored bytes that are not those of the chunk.
 * @param digest of the stored bytes, when it is known already (`splitChunks`)
 * @throws BUNDLE_DIGEST
 */
export function checkStored(chunk: Chunk, stored: Uint8Array, digest?: string): void {
  if (stored.length !== chunk.storedLength || (digest ?? sha256(stored)) !== chunk.storedDigest)
    throw bundleErrors.BUNDLE_DIGEST(
      `the ${stored.length} bytes stored for byte ${chunk.offset} of the image are not those that were signed: wanted ${chunk.storedLength} with the SHA-256 ${chunk.storedDigest}`,
    )
}

/** A chunk, its stored bytes, unchecked, and their SHA-256 where both threads of the hash crew made it. */
export type StoredChunk = readonly [chunk: Chunk, stored: Uint8Array, digest: string | undefined]

/** Neighbours in a list of chunks: what is stored of them, one behind the other. Unchecked: see `checkRun`. */
export interface StoredRun {
  /** Of the list. */
  readonly first: number
  readonly count: number
  /** Valid until the next run is asked for, as `digests` is; that one is void also once anything else is hashed. */
  readonly bytes: Uint8Array
  /** SHA-256 of each, 32 bytes, where both threads of the hash crew made them. */
  readonly digests: Buffer | undefined
}

const DIGEST = 32

/**
 * Reads consecutive chunks of an index in one go and yields each with its stored bytes, unchecked.
 * @param dataOffset where the image's data starts in the source
 */
export async function* readChunks(
  source: ByteSource,
  dataOffset: number,
  chunks: readonly Chunk[],
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<StoredChunk> {
  for await (const run of readRuns(source, dataOffset, chunks, options)) yield* chunksOf(run, chunks)
}

/** As `readChunks`, with all chunks that end in one piece of the source at once. */
export async function* readRuns(
  source: ByteSource,
  dataOffset: number,
  chunks: readonly Chunk[],
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<StoredRun> {
  const first = chunks[0]
  const last = chunks.at(-1)
  if (first === undefined || last === undefined) return
  const length = last.storedOffset + last.storedLength - first.storedOffset
  yield* splitRuns(source.read(dataOffset + first.storedOffset, length, options), chunks)
}

/** Where the stored bytes of ascending chunks stand in a bundle; neighbours are one range. */
export function storedRanges(dataOffset: number, chunks: readonly Chunk[]): ByteRange[] {
  const ranges: { offset: number; length: number }[] = []
  for (const { storedOffset, storedLength } of chunks) {
    const last = ranges.at(-1)
    const offset = dataOffset + storedOffset
    if (last !== undefined && last.offset + last.length === offset) last.length += storedLength
    else ranges.push({ offset, length: storedLength })
  }
  return ranges
}

/**
 * Cuts a stream of stored bytes into chunks; the bytes of one are valid until the next is asked for. A stream too short
 * or too long is refused. @throws BUNDLE_DIGEST
 */
export async function* splitChunks(
  stream: AsyncIterable<Uint8Array>,
  chunks: readonly Chunk[],
): AsyncGenerator<StoredChunk> {
  for await (const run of splitRuns(stream, chunks)) yield* chunksOf(run, chunks)
}

function* chunksOf({ first, count, bytes, digests }: StoredRun, chunks: readonly Chunk[]): Generator<StoredChunk> {
  // At once: who takes a chunk may hash other things meanwhile.
  const known = digests?.toString('hex', 0, count * DIGEST)
  let at = 0
  for (let i = 0; i < count; i++) {
    const chunk = chunks[first + i] as Chunk
    const digest = known?.slice(i * 2 * DIGEST, (i + 1) * 2 * DIGEST)
    yield [chunk, bytes.subarray(at, at + chunk.storedLength), digest]
    at += chunk.storedLength
  }
}

/** Are all stored bytes of a run those of their chunks? */
export function holdsRun(run: StoredRun, chunks: readonly Chunk[]): boolean {
  const { first, count, digests } = run
  if (digests !== undefined) return areStoredDigests(chunks, first, count, digests)
  for (const [chunk, stored] of chunksOf(run, chunks)) if (sha256(stored) !== chunk.storedDigest) return false
  return true
}

/**
 * Refuses a run with stored bytes that are not those of their chunks.
 * @throws BUNDLE_DIGEST
 */
export function checkRun(run: StoredRun, chunks: readonly Chunk[]): void {
  if (holdsRun(run, chunks)) return
  // The wrong one is to be named.
  for (const [chunk, stored] of chunksOf({ ...run, digests: undefined }, chunks)) checkStored(chunk, stored)
}

/**
 * The contents of a run that `checkRun` let pass, with where they belong in the image. Neighbours there that are stored
 * as they are come as one; the bytes are valid until the next are asked for.
 * @throws BUNDLE_DIGEST, ZSTD_INVALID, ZSTD_LENGTH, ZSTD_TRAILING
 */
export function* contentsOf(
  { first, count, bytes }: Pick<StoredRun, 'first' | 'count' | 'bytes'>,
  chunks: readonly Chunk[],
): Generator<{ readonly offset: number; readonly bytes: Uint8Array }> {
  let at = 0
  /** What waits to be yielded: from here in `bytes`, and where it stands in the image; nothing when they are equal. */
  let from = 0
  let start = 0
  let end = 0
  for (let i = first; i < first + count; i++) {
    const chunk = chunks[i] as Chunk
    if (chunk.encoding === 'raw' && end > start && chunk.offset === end) {
      end += chunk.length
      at += chunk.storedLength
      continue
    }
    if (end > start) yield { offset: start, bytes: bytes.subarray(from, at) }
    from = at
    start = chunk.offset
    end = start
    at += chunk.storedLength
    if (chunk.encoding === 'raw') end += chunk.length
    else yield { offset: start, bytes: unpackChecked(chunk, bytes.subarray(from, at)) }
  }
  if (end > start) yield { offset: start, bytes: bytes.subarray(from, at) }
}

/** Where the chunks of a run begin in their piece, and where the last one ends. */
const bounds = new Int32Array(MAX_SPANS + 1)

/**
 * As `splitChunks`, with all chunks that end in one piece of the stream at once: thousands of small chunks are not waited
 * for one by one, and cost next to nothing each.
 */
export async function* splitRuns(
  stream: AsyncIterable<Uint8Array>,
  chunks: readonly Chunk[],
): AsyncGenerator<StoredRun> {
  /** The start of a chunk that goes on in the next piece; `have` bytes of it. */
  let carry: Uint8Array = new Uint8Array(0)
  let have = 0
  let next = 0
  for await (const piece of stream) {
    let at = 0
    const begun = have > 0 ? chunks[next] : undefined
    if (begun !== undefined && begun.storedLength - have <= piece.length) {
      at = begun.storedLength - have
      carry.set(piece.subarray(0, at), have)
      have = 0
      yield { first: next++, count: 1, bytes: carry.subarray(0, begun.storedLength), digests: undefined }
    }
    while (have === 0) {
      const first = next
      const from = at
      for (let chunk = chunks[next]; chunk !== undefined && next - first < MAX_SPANS; chunk = chunks[next]) {
        const end = at + chunk.storedLength
        if (end > piece.length) break
        bounds[next - first] = at - from
        at = end
        next++
      }
      const count = next - first
      if (count === 0) break
      bounds[count] = at - from
      const bytes = piece.subarray(from, at)
      yield { first, count, bytes, digests: spanDigests(bytes, bounds, count) }
    }
    if (next === chunks.length && at < piece.length)
      throw bundleErrors.BUNDLE_DIGEST('there are more stored bytes than the chunks of the index take')
    const chunk = chunks[next]
    if (chunk === undefined || at === piece.length) continue
    // Signed indexes have chunks of at most 1 MiB.
    if (have === 0 && carry.length < chunk.storedLength) carry = new Uint8Array(chunk.storedLength)
    carry.set(piece.subarray(at), have)
    have += piece.length - at
  }
  if (next < chunks.length)
    throw bundleErrors.BUNDLE_DIGEST(`the stored bytes end in chunk ${next} of the ${chunks.length} wanted`)
}
