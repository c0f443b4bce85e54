import { pageAligned } from '../../base/aligned.ts'
import { MiB } from '../../base/bytes.ts'
import type { SlotDevice } from './types.ts'

const SPAN = MiB
/** Pieces that wait for the device or are being written: what comes while a flush holds the device up. */
const WAITING = 6
/** At most twice this much written data waits to be flushed. */
const FLUSH_BYTES = 16 * MiB
/** On a slow door, at most this much time's worth of fetched data is lost in a power cut. */
const FLUSH_MS = 5000

export interface SlotWriter {
  /** Takes all of `bytes`; they may be reused when it resolves, or at once when there was nothing to wait for. */
  write(offset: number, bytes: Uint8Array): Promise<void> | undefined
  /** Writes what is left and flushes the device. When it settles, nothing is under way any more, failed or not. */
  finish(): Promise<void>
}

/** Memory for pieces, used again by the next writer. Aligned, so that it can go past the page cache. */
const spare: Uint8Array[] = []

/**
 * Gathers consecutive writes into pieces that end on 1 MiB boundaries, and hands them to the device one after the other
 * while the next are filled; flushes in the background at bounded intervals, so that the last flush is short.
 * The first failure is final: a device that failed once is not written again.
 */
export function createSlotWriter(device: SlotDevice, now: () => number): SlotWriter {
  /** A byte stands in its piece where it stands in its MiB of the device: what is aligned there is aligned here. */
  let filling: Uint8Array | undefined
  let start = 0
  let fill = 0
  /** Settles when all that was handed over is written. */
  let writing: Promise<void> = Promise.resolve()
  let flushing: Promise<void> = Promise.resolve()
  const waiting: Promise<void>[] = []
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

  /** Writes one piece when those before it are written. */
  async function put(before: Promise<void>, piece: Uint8Array, offset: number, length: number): Promise<void> {
    await before
    try {
      check()
      // Everything written so far has resolved, so this flush covers it; the piece below belongs to the next one.
      if (unflushed > 0 && (unflushed >= FLUSH_BYTES || now() - flushedAt >= FLUSH_MS)) {
        await flushing
        check()
        unflushed = 0
        flushedAt = now()
        flushing = background(device.flush())
      }
      await device.write(offset, piece.subarray(offset % SPAN, (offset % SPAN) + length))
      unflushed += length
    } finally {
      spare.push(piece)
    }
  }

  /** Hands over what has been gathered; waits while too much waits already. */
  async function drain(): Promise<void> {
    check()
    drainedAt = now()
    if (filling === undefined || fill === 0) return
    if (waiting.length >= WAITING) await waiting.shift()
    check()
    writing = background(put(writing, filling, start, fill))
    waiting.push(writing)
    filling = undefined
    start += fill
    fill = 0
  }

  const piece = (): Uint8Array => {
    filling ??= spare.pop() ?? pageAligned(SPAN)
    return filling
  }

  async function gather(offset: number, bytes: Uint8Array): Promise<void> {
    check()
    if (offset !== start + fill) {
      await drain()
      start = offset
    }
    let at = 0
    while (at < bytes.length) {
      const place = (start + fill) % SPAN
      const length = Math.min(SPAN - place, bytes.length - at)
      piece().set(bytes.subarray(at, at + length), place)
      fill += length
      at += length
      if (place + length === SPAN) await drain()
    }
    // A slow door: what came is worth more than what could be done meanwhile.
    if (now() - drainedAt >= FLUSH_MS) {
      await writing
      await drain()
    }
  }

  return {
    write(offset, bytes) {
      const place = offset % SPAN
      const fits = offset === start + fill && place + bytes.length < SPAN
      if (!fits || failure !== undefined || now() - drainedAt >= FLUSH_MS) return gather(offset, bytes)
      piece().set(bytes, place)
      fill += bytes.length
      return undefined
    },
    async finish() {
      // First what waits: a failure there leaves nothing to hand over.
      await writing
      if (failure === undefined) await drain()
      await writing
      // Not together with `writing`, which may begin the last one.
      await flushing
      check()
      await device.flush()
    },
  }
}
