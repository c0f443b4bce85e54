import { type ByteSource, filtered } from '../../base/source.ts'
import type { DoorClock } from '../doors/clock.ts'

/** The bandwidth limit: a source that gives its bytes no faster than allowed. */

/** Pieces are cut to this part of a second, so that a low limit is kept in small steps and not in bursts. */
const STEPS_PER_SECOND = 10
const LEAST_PIECE = 512
/** Time not used is not saved up for longer than this. */
const SAVED_MS = 250

/**
 * Wraps a source. What is read comes at `bytesPerSecond` on average over every few seconds; the pressure reaches the
 * sender because nobody reads on. Reads of one source share the limit.
 */
export function limited(source: ByteSource, bytesPerSecond: number, clock: DoorClock): ByteSource {
  const most = Math.max(LEAST_PIECE, Math.floor(bytesPerSecond / STEPS_PER_SECOND))
  /** When the bytes given so far are paid for. */
  let paid = Number.NEGATIVE_INFINITY
  const pace = async function* (pieces: AsyncIterable<Uint8Array>, signal: AbortSignal | undefined) {
    for await (const piece of pieces) {
      for (let at = 0; at < piece.length; at += most) {
        const part = piece.subarray(at, at + most)
        paid = Math.max(paid, clock.now() - SAVED_MS) + (part.length / bytesPerSecond) * 1000
        const wait = paid - clock.now()
        if (wait > 0) await clock.sleep(wait, signal)
        yield part
      }
    }
  }
  return filtered(source, (start, options) => pace(start(options), options?.signal))
}
