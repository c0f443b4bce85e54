import { isAddress } from '../../base/address.ts'
import { isBistableError } from '../../base/errors.ts'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import type { AnnouncedDelta } from '../../bundle/freshness.ts'
import { exact } from '../doors/exact.ts'
import { type Core, failureFrom } from './core.ts'
import { arriving, heard, mover } from './heard.ts'
import type { OfferedHints, OfferedPatch, Spare } from './ports.ts'

/** Where a patch may be had: announced by the channel, or named by a person. */
export interface PatchPlace {
  /** A path or an address. */
  readonly from: string
  /** What the channel says of its head; undefined: nobody vouches for it. */
  readonly announced?: AnnouncedDelta['head']
}

/**
 * Opens a patch for an install. One that cannot be had is said and given up: chunks are there in any case.
 * @returns with a `close` that the caller calls
 */
export async function openPatch(
  core: Core,
  place: PatchPlace | undefined,
  signal: AbortSignal,
): Promise<(OfferedPatch & { readonly close: () => Promise<void> }) | undefined> {
  if (place === undefined) return undefined
  const onRefused = (error: Error): void => {
    const { code, message } = failureFrom(error)
    core.say(`bistable: ${code}: ${message}; what it was to give is fetched instead`, 'warning')
  }
  try {
    const { engine } = core.ports
    const opened = await engine.open(place.from, signal)
    const source = isAddress(place.from) ? arriving(core, opened) : heard(exact(opened), mover(core))
    try {
      const head = await readDeltaHead(source, place.announced, { signal })
      return { source, head, onRefused, close: () => source.close() }
    } catch (error) {
      await source.close()
      throw error
    }
  } catch (error) {
    if (signal.aborted || !isBistableError(error)) throw error
    onRefused(error)
    return undefined
  }
}

/** What may spare reading chunk indexes. Not for a place whose every byte is verified before it is used: there they are read. */
export function spareFor(
  core: Core,
  from: string,
  offered: OfferedPatch | undefined,
  hints: OfferedHints | undefined,
): Spare | undefined {
  return isAddress(from) ? { offered, hints, running: core.line.slot } : undefined
}
