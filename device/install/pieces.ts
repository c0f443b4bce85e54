import { pageAligned } from '../../base/aligned.ts'
import { MiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { crewBuffer, giveBack } from '../../base/hash-crew.ts'
import type { SlotDevice } from '../slots/types.ts'
import { installErrors } from './errors.ts'

export const PIECE = MiB
/** Kept for the next range: two buffers serve a whole install. Aligned, so that fresh reads go straight into them. */
const SPARE = 2
const spare: Uint8Array[] = []
const take = (): Uint8Array => crewBuffer() ?? spare.pop() ?? pageAligned(PIECE)

/**
 * Reads `length` bytes of a device in order, in pieces of 1 MiB that start on 1 MiB steps from `offset`; the next piece
 * is read while the present one is worked on. A piece is valid until the next one is asked for.
 */
export function devicePieces(
  device: Pick<SlotDevice, 'read'>,
  range: PieceRange,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  return pieces(device, range, signal, (error) => {
    throw error
  })
}

/** The same, with undefined for a piece that the medium does not give: what is to be written over need not be readable. */
export function readablePieces(
  device: Pick<SlotDevice, 'read'>,
  range: PieceRange,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array | undefined> {
  return pieces(device, range, signal, unreadable)
}

/** For `catch`: undefined for what the medium does not give; whatever else failed has failed. */
export function unreadable(error: unknown): undefined {
  if (!isBistableError(error, 'SLOT_READ_FAILED')) throw error
  return undefined
}

interface PieceRange {
  readonly offset: number
  readonly length: number
  readonly fresh: boolean
}

async function* pieces<Unread>(
  device: Pick<SlotDevice, 'read'>,
  range: PieceRange,
  signal: AbortSignal | undefined,
  onFailed: (error: unknown) => Unread,
): AsyncGenerator<Uint8Array | Unread> {
  const sizeAt = (at: number): number => Math.min(PIECE, range.length - at)
  const fetch = (buffer: Uint8Array, at: number) => {
    const piece = buffer.subarray(0, sizeAt(at))
    const ready = device.read(range.offset + at, piece, { fresh: range.fresh }).then(() => piece, onFailed)
    // Its failure is seen when it is awaited below; if nobody comes for it any more, it does not matter.
    ready.catch(() => undefined)
    return ready
  }
  let present = take()
  let other = take()
  let next = fetch(present, 0)
  try {
    for (let at = 0; at < range.length; at += PIECE) {
      throwIfCancelled(signal)
      const piece = await next
      if (at + PIECE < range.length) {
        next = fetch(other, at + PIECE)
        const swap = present
        present = other
        other = swap
      }
      yield piece
    }
  } finally {
    await next.catch(() => undefined)
    for (const buffer of [present, other]) if (!giveBack(buffer) && spare.length < SPARE) spare.push(buffer)
  }
}

export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true)
    throw installErrors.INSTALL_CANCELLED('cancelled before arming', { cause: signal.reason })
}
