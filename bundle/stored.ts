import { type Span, spanDigests } from '../base/hash-crew.ts'
import type { ByteRange, ByteSource } from '../base/source.ts'
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
  for await (const batch of readBatches(source, dataOffset, chunks, options)) yield* batch
}

/** As `readChunks`, with all chunks that end in one piece of the source at once. */
export async function* readBatches(
  source: ByteSource,
  dataOffset: number,
  chunks: readonly Chunk[],
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<readonly StoredChunk[]> {
  const first = chunks[0]
  const last = chunks.at(-1)
  if (first === undefined || last === undefined) return
  const length = last.storedOffset + last.storedLength - first.storedOffset
  yield* splitBatches(source.read(dataOffset + first.storedOffset, length, options), chunks)
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
  for await (const batch of splitBatches(stream, chunks)) yield* batch
}

/**
 * As `splitChunks`, with all chunks that end in one piece of the stream at once, valid until the next batch is asked
 * for: thousands of small chunks are not waited for one by one.
 */
export async function* splitBatches(
  stream: AsyncIterable<Uint8Array>,
  chunks: readonly Chunk[],
): AsyncGenerator<readonly StoredChunk[]> {
  /** The start of a chunk that goes on in the next piece; `have` bytes of it. */
  let carry: Uint8Array = new Uint8Array(0)
  let have = 0
  let next = 0
  for await (const piece of stream) {
    const batch: StoredChunk[] = []
    const digests = wholeDigests(piece, chunks, next, have)
    let whole = 0
    let at = 0
    for (let chunk = chunks[next]; chunk !== undefined; chunk = chunks[next]) {
      const end = at + chunk.storedLength - have
      if (end > piece.length) break
      if (have > 0) {
        carry.set(piece.subarray(at, end), have)
        batch.push([chunk, carry.subarray(0, chunk.storedLength), undefined])
        have = 0
      } else batch.push([chunk, piece.subarray(at, end), digests?.[whole++]])
      at = end
      next++
    }
    if (batch.length > 0) yield batch
    if (next === chunks.length && at < piece.length)
      throw bundleErrors.BUNDLE_DIGEST('there are more stored bytes than the chunks of the index take')
    const chunk = chunks[next]
    if (chunk === undefined || at === piece.length) continue
    // Signed indexes have chunks of at most 1 MiB. A batch may still stand in the old memory.
    if (have === 0 && carry.length < chunk.storedLength) carry = new Uint8Array(chunk.storedLength)
    carry.set(piece.subarray(at), have)
    have += piece.length - at
  }
  if (next < chunks.length)
    throw bundleErrors.BUNDLE_DIGEST(`the stored bytes end in chunk ${next} of the ${chunks.length} wanted`)
}

/** SHA-256 of the chunks from `next` on that stand in the piece as a whole; `have` bytes of the first came before it. */
function wholeDigests(
  piece: Uint8Array,
  chunks: readonly Chunk[],
  next: number,
  have: number,
): readonly string[] | undefined {
  const spans: Span[] = []
  let offset = -have
  for (let i = next; ; i++) {
    const chunk = chunks[i]
    if (chunk === undefined || offset + chunk.storedLength > piece.length) break
    if (offset >= 0) spans.push({ offset, length: chunk.storedLength })
    offset += chunk.storedLength
  }
  const digests = spanDigests(piece, spans)
  return digests === undefined ? undefined : spans.map((_, i) => digests.toString('hex', i * 32, (i + 1) * 32))
}
