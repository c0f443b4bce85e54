import { spanDigests } from '../base/hash-crew.ts'
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
  const first = chunks[0]
  const last = chunks.at(-1)
  if (first === undefined || last === undefined) return
  const length = last.storedOffset + last.storedLength - first.storedOffset
  yield* splitChunks(source.read(dataOffset + first.storedOffset, length, options), chunks)
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
  /** The start of a chunk that goes on in the next piece; `have` bytes of it. */
  let carry: Uint8Array = new Uint8Array(0)
  let have = 0
  let next = 0
  for await (const piece of stream) {
    let rest = piece
    const digests = wholeDigests(piece, chunks, next, have)
    for (let chunk = chunks[next]; chunk !== undefined; chunk = chunks[next]) {
      const missing = chunk.storedLength - have
      if (rest.length < missing) break
      const last = rest.subarray(0, missing)
      if (have > 0) carry.set(last, have)
      yield [chunk, have > 0 ? carry.subarray(0, chunk.storedLength) : last, digests.get(chunk)]
      have = 0
      next++
      rest = rest.subarray(missing)
    }
    if (next === chunks.length && rest.length > 0)
      throw bundleErrors.BUNDLE_DIGEST('there are more stored bytes than the chunks of the index take')
    const chunk = chunks[next]
    if (chunk === undefined || rest.length === 0) continue
    // Signed indexes have chunks of at most 1 MiB.
    if (have === 0 && carry.length < chunk.storedLength) carry = new Uint8Array(chunk.storedLength)
    carry.set(rest, have)
    have += rest.length
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
): ReadonlyMap<Chunk, string> {
  const spans: { offset: number; length: number; chunk: Chunk }[] = []
  let offset = -have
  for (let i = next; ; i++) {
    const chunk = chunks[i]
    if (chunk === undefined || offset + chunk.storedLength > piece.length) break
    if (offset >= 0) spans.push({ offset, length: chunk.storedLength, chunk })
    offset += chunk.storedLength
  }
  const digests = spanDigests(piece, spans)
  if (digests === undefined) return new Map()
  return new Map(spans.map(({ chunk }, i) => [chunk, digests.toString('hex', i * 32, (i + 1) * 32)]))
}
