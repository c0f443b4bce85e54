import { type ByteSource, filtered } from '../../base/source.ts'
import { type DoorClock, within } from './clock.ts'
import { doorErrors } from './errors.ts'

/**
 * For a place that is not the only one: what gives nothing for `ms` is given up, whatever a door would still try. Only time in
 * which somebody waits for bytes counts.
 * @param open told to stop by its signal
 * @throws TRANSPORT_STALLED; the signal's reason when aborted
 */
export async function openImpatient(
  open: (signal: AbortSignal) => Promise<ByteSource>,
  name: string,
  ms: number,
  clock: DoorClock,
  signal: AbortSignal,
): Promise<ByteSource> {
  const source = await hurried(ms, clock, name, signal, open)
  const watch = async function* (start: (signal: AbortSignal) => AsyncIterable<Uint8Array>, outer?: AbortSignal) {
    const stop = new AbortController()
    const pieces = start(outer === undefined ? stop.signal : AbortSignal.any([stop.signal, outer]))[
      Symbol.asyncIterator
    ]()
    try {
      for (;;) {
        const next = await within(clock, ms, pieces.next(), () => given(name, ms, stop))
        if (next.done === true) return
        yield next.value
      }
    } finally {
      stop.abort()
      // A door that heeds its signal is done by now; one that does not is not waited for.
      void pieces.return?.().catch(() => undefined)
    }
  }
  return filtered(source, (start, options) => watch((signal) => start({ signal }), options?.signal))
}

/** Work that must be done within `ms`; it is told to stop by its signal. @throws TRANSPORT_STALLED */
export async function hurried<T>(
  ms: number,
  clock: DoorClock,
  name: string,
  signal: AbortSignal,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const stop = new AbortController()
  return await within(clock, ms, work(AbortSignal.any([stop.signal, signal])), () => given(name, ms, stop))
}

function given(name: string, ms: number, stop: AbortController): Error {
  const error = doorErrors.TRANSPORT_STALLED(`${name} gave nothing for ${ms / 1000} s`)
  stop.abort(error)
  return error
}
