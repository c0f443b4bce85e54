import { type ByteSource, filtered } from '../../base/source.ts'
import { exact } from '../doors/exact.ts'
import { limited } from '../policy/limit.ts'
import type { Core } from './core.ts'

/** Between two moves of the stall deadline, which is 10 s or more. */
const MOVE_MS = 1000
/** So much must come within a deadline to count as moving: a byte now and then keeps no install alive. */
const MOVE_BYTES = 1024

/** @returns what is to be called whenever an install has moved on: it moves the stall deadline, in memory only */
export function mover(core: Core): () => void {
  let movedAt = Number.NEGATIVE_INFINITY
  return () => {
    core.activity.beat()
    const now = core.ports.clock.now()
    // Nothing is written for it, and a small part of the shortest deadline is exact enough.
    if (now - movedAt < MOVE_MS) return
    movedAt = now
    void core.apply({ kind: 'progress' })
  }
}

const BEAT_MS = 5000

/** Work that shows nothing while it lasts, and has a limit of its own: it is no stall until then. @param ms the limit */
export async function lasting<T>(core: Core, ms: number, work: () => Promise<T>): Promise<T> {
  const { clock } = core.ports
  const moved = mover(core)
  const done = new AbortController()
  const end = clock.now() + ms
  const beats = (async () => {
    while (!done.signal.aborted && clock.now() <= end) {
      moved()
      await clock.sleep(BEAT_MS, done.signal).catch(() => undefined)
    }
  })()
  try {
    return await work()
  } finally {
    done.abort()
    await beats
    moved()
  }
}

/**
 * Tells of each KiB that comes, whatever it is read for: a head or an inventory of a megabyte takes minutes on a slow
 * line, and is no stall. Doors judge a line that is too slow sooner and better; this is for those that do not.
 */
export function heard(source: ByteSource, moved: () => void): ByteSource {
  let bytes = 0
  const tell = async function* (pieces: AsyncIterable<Uint8Array>) {
    for await (const piece of pieces) {
      bytes += piece.length
      if (bytes >= MOVE_BYTES) {
        bytes = 0
        moved()
      }
      yield piece
    }
  }
  return filtered(source, (start, options) => tell(start(options)))
}

/** What comes over a network: the bytes asked for and no others, no faster than the device may, and heard of. */
export function arriving(core: Core, opened: ByteSource): ByteSource {
  const { clock, config } = core.ports
  const { bytesPerSecond } = config.agent.policy.download
  const asked = exact(opened)
  return heard(bytesPerSecond === undefined ? asked : limited(asked, bytesPerSecond, clock), mover(core))
}
