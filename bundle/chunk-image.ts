import type { ByteSource } from '../base/source.ts'
import type { BlockReader } from './squashfs/reader.ts'
import { readChunks, unpackChunk } from './stored.ts'
import type { Chunk, ChunkIndex } from './types.ts'

/** Chunks kept unpacked; 1 MiB each at most. */
const KEPT = 8

/**
 * An image inside a bundle as random-access bytes. Every chunk is checked against the index before it is used.
 * @param dataOffset where the image's data starts in the source
 * @throws from its reads: BUNDLE_DIGEST, ZSTD_*, and what the source throws
 */
export function chunkImage(source: ByteSource, dataOffset: number, index: ChunkIndex): BlockReader {
  const kept = new Map<number, Uint8Array>()

  async function read(offset: number, length: number): Promise<Uint8Array> {
    if (offset < 0 || length < 0 || offset + length > index.imageLength)
      throw new RangeError(`${length} bytes at ${offset} of an image of ${index.imageLength}`)
    const out = Buffer.allocUnsafeSlow(length)
    if (length === 0) return out
    const first = findChunk(index.chunks, offset)
    let end = first
    for (; (index.chunks[end]?.offset ?? Number.POSITIVE_INFINITY) < offset + length; end++) {
      const content = kept.get(index.chunks[end]?.offset ?? -1)
      if (content !== undefined) place(out, offset, index.chunks[end]?.offset ?? 0, content)
    }
    // One read from the first chunk that is not kept to the last.
    const wanted = index.chunks.slice(first, end)
    const missing = wanted.map((chunk) => !kept.has(chunk.offset))
    const from = missing.indexOf(true)
    if (from < 0) return out
    for await (const [chunk, stored] of readChunks(
      source,
      dataOffset,
      wanted.slice(from, missing.lastIndexOf(true) + 1),
    )) {
      const content = unpackChunk(chunk, stored)
      place(out, offset, chunk.offset, content)
      keep(chunk.offset, content)
    }
    return out
  }

  function keep(at: number, content: Uint8Array): void {
    // A copy: the content of a raw chunk is a view of a larger piece.
    kept.set(at, Uint8Array.from(content))
    for (const oldest of kept.keys()) {
      if (kept.size <= KEPT) break
      kept.delete(oldest)
    }
  }

  return { read }
}

/** Puts the part of `content`, which stands at `at` in the image, that `out`, which starts at `offset`, wants. */
function place(out: Uint8Array, offset: number, at: number, content: Uint8Array): void {
  const from = Math.max(0, offset - at)
  const part = content.subarray(from, from + out.length - Math.max(0, at - offset))
  out.set(part, Math.max(0, at - offset))
}

/** The number of the chunk that holds byte `offset`; chunks are in order, without gaps. */
function findChunk(chunks: readonly Chunk[], offset: number): number {
  let low = 0
  let high = chunks.length - 1
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if ((chunks[middle]?.offset ?? 0) <= offset) low = middle
    else high = middle - 1
  }
  return low
}
