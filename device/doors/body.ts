import type { IncomingMessage } from 'node:http'
import { type DoorClock, within } from './clock.ts'
import { failure, Transient } from './request.ts'

/** The slowest that is still progress: `bytes` in `windowMs`. Time in which nobody asks for bytes does not count. */
export interface RateLimits {
  readonly windowMs: number
  readonly bytes: number
}

export const DEFAULT_RATE: RateLimits = { windowMs: 30_000, bytes: 4096 }

/**
 * The pieces of a body, as they come. Ends when the body ends; fails as Transient when the connection breaks or is
 * too slow; rejects with the signal's reason when aborted. Destroys the body when it is left early.
 */
export async function* bodyPieces(
  body: IncomingMessage,
  url: URL,
  clock: DoorClock,
  rate: RateLimits,
): AsyncGenerator<Uint8Array> {
  const pieces = body[Symbol.asyncIterator]()
  let waited = 0
  let got = 0
  const stalled = (): Error => {
    body.destroy()
    return new Transient('TRANSPORT_STALLED', `${got} bytes came in ${rate.windowMs} ms`)
  }
  try {
    for (;;) {
      const since = clock.now()
      const next = await within(clock, Math.max(1, rate.windowMs - waited), pieces.next(), stalled)
      if (next.done === true) return
      const piece: Uint8Array = next.value
      waited += clock.now() - since
      got += piece.length
      if (waited >= rate.windowMs) {
        if (got < rate.bytes) throw stalled()
        waited = 0
        got = 0
      } else if (got >= rate.bytes) {
        // Enough for this window: the next one begins.
        waited = 0
        got = 0
      }
      yield piece
    }
  } catch (error) {
    throw failure(url, error)
  } finally {
    body.destroy()
  }
}
