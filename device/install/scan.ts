import { createSha256, sha256 } from '../../bundle/digest.ts'
import type { ChunkIndex } from '../../bundle/types.ts'
import type { SlotDevice } from '../slots/types.ts'
import { devicePieces } from './pieces.ts'

/**
 * Which chunks the slot already holds at their place: one byte per chunk, 1 for held. This is all there is to resuming;
 * no journal could be more right than the bytes themselves. Reads go through the page cache: what is found is read
 * again from the medium before arming.
 */
export async function scanSlot(
  device: SlotDevice,
  index: ChunkIndex,
  signal: AbortSignal | undefined,
  onDone: (done: number) => void,
): Promise<Uint8Array> {
  const held = new Uint8Array(index.chunks.length)
  let next = 0
  let at = 0
  let partial: ReturnType<typeof createSha256> | undefined
  for await (const piece of devicePieces(device, { offset: 0, length: index.imageLength, fresh: false }, signal)) {
    const end = at + piece.length
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
