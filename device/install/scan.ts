import { MiB } from '../../base/bytes.ts'
import { createSha256, sha256 } from '../../bundle/digest.ts'
import type { ChunkIndex } from '../../bundle/types.ts'
import type { SlotDevice } from '../slots/types.ts'
import { PIECE, readablePieces, throwIfCancelled, unreadable } from './pieces.ts'

/**
 * Which chunks the slot already holds at their place: one byte per chunk, 1 for held. This is all there is to resuming;
 * no journal could be more right than the bytes themselves. Reads go through the page cache: what is found is read
 * again from the medium before arming. What cannot be read is not held: it is written over, and often well again then.
 */
export async function scanSlot(
  device: Pick<SlotDevice, 'read'>,
  index: ChunkIndex,
  signal: AbortSignal | undefined,
  onDone: (done: number) => void,
): Promise<Uint8Array> {
  const held = new Uint8Array(index.chunks.length)
  let next = 0
  let at = 0
  let partial: ReturnType<typeof createSha256> | undefined
  for await (const piece of readablePieces(device, { offset: 0, length: index.imageLength, fresh: false }, signal)) {
    const end = at + (piece?.length ?? Math.min(PIECE, index.imageLength - at))
    if (piece === undefined) {
      partial = undefined
      // All that has a byte in it, also of those that go on in the next one.
      while ((index.chunks[next]?.offset ?? end) < end) next++
      at = end
      onDone(at)
      continue
    }
    for (let chunk = index.chunks[next]; chunk !== undefined; chunk = index.chunks[next]) {
      const from = Math.max(chunk.offset, at) - at
      const to = Math.min(chunk.offset + chunk.length, end) - at
      if (to <= from) break
      const bytes = piece.subarray(from, to)
      if (chunk.offset + chunk.length > end) {
        // The chunk goes on in the next piece.
        partial ??= createSha256()
        partial.update(bytes)
        break
      }
      let digest: string
      if (partial === undefined) digest = sha256(bytes)
      else {
        partial.update(bytes)
        digest = partial.finish()
        partial = undefined
      }
      if (digest === chunk.digest) held[next] = 1
      next++
    }
    at = end
    onDone(at)
  }
  return held
}

/** The first chunks, where an install that was stopped has written; the others spread over the image. */
const FIRST = 2
const SPREAD = 14

/**
 * Does the slot hold at least one of a few chunks at its place? An install that was stopped fills from the start, and an
 * earlier release shares what stands in front of its first change: a slot with neither is rarely worth a search.
 */
export async function holdsSample(
  device: Pick<SlotDevice, 'read'>,
  { chunks }: ChunkIndex,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const scratch = new Uint8Array(MiB)
  for (let i = 0; i < Math.min(chunks.length, FIRST + SPREAD); i++) {
    throwIfCancelled(signal)
    const chunk = chunks[i < FIRST ? i : Math.floor(((i - FIRST + 1) * (chunks.length - 1)) / SPREAD)]
    if (chunk === undefined) break
    const bytes = scratch.subarray(0, chunk.length)
    const read = await device.read(chunk.offset, bytes, { fresh: false }).then(() => true, unreadable)
    if (read === true && sha256(bytes) === chunk.digest) return true
  }
  return false
}
