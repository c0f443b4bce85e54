import { MiB } from '../../base/bytes.ts'
import type { SlotDevice } from './types.ts'

const SPAN = MiB
/** At most twice this much written data waits in the page cache. */
const FLUSH_BYTES = 16 * MiB
/** On a slow door, at most this much time's worth of fetched data is lost in a power cut. */
const FLUSH_MS = 5000

export interface SlotWriter {
  /** Takes all of `bytes`; they may be reused when it resolves. */
  write(offset: number, bytes: Uint8Array): Promise<void>
  /** Writes what is left and flushes the device. When it settles, nothing is under way any more, failed or not. */
  finish(): Promise<void>
}

/**
 * Gathers consecutive writes into pieces that end on 1 MiB boundaries, keeps one piece in flight while the next is
 * filled, and flushes in the background at bounded intervals, so that the last flush is short.
 * The first failure is final: a device that failed once is not written again.
 */
export function createSlotWriter(device: SlotDevice, now: () => number): SlotWriter {
  let filling = new Uint8Array(SPAN)
  let spare = new Uint8Array(SPAN)
  let start = 0
  let fill = 0
  let writing: Promise<void> = Promise.resolve()
  let flushing: Promise<void> = Promise.resolve()
  let unflushed = 0
  let flushedAt = now()
  let drainedAt = now()
  let failure: { readonly error: unknown } | undefined

  /** Runs in the background; its failure surfaces at the next call. */
  const background = (work: Promise<void>): Promise<void> =>
    work.catch((error: unknown) => {
      failure ??= { error }
    })
  const check = (): void => {
    if (failure !== undefined) throw failure.error
  }

  async function drain(): Promise<void> {
    await writing
    check()
    drainedAt = now()
    if (fill === 0) return
    const bytes = filling.subarray(0, fill)
    // Everything written so far has resolved, so this flush covers it; the piece below belongs to the next one.
    if (unflushed > 0 && (unflushed >= FLUSH_BYTES || now() - flushedAt >= FLUSH_MS)) {
      await flushing
      check()
      unflushed = 0
      flushedAt = now()
      flushing = background(device.flush())
    }
    writing = background(device.write(start, bytes))
    unflushed += fill
    const next = spare
    spare = filling
    filling = next
    start += fill
    fill = 0
  }

  return {
    async write(offset, bytes) {
      check()
      if (offset !== start + fill) {
        await drain()
        start = offset
      }
      let at = 0
      while (at < bytes.length) {
        const room = SPAN - ((start + fill) % SPAN)
        const length = Math.min(room, bytes.length - at)
        filling.set(bytes.subarray(at, at + length), fill)
        fill += length
        at += length
        if (length === room) await drain()
      }
      if (now() - drainedAt >= FLUSH_MS) await drain()
    },
    async finish() {
      await Promise.all([writing, flushing])
      await drain()
      await Promise.all([writing, flushing])
      check()
      await device.flush()
    },
  }
}
