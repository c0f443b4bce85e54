import { isAddress } from '../../base/address.ts'
import { isBistableError } from '../../base/errors.ts'
import { exact } from '../doors/exact.ts'
import { limited } from '../policy/limit.ts'
import { type Core, failureFrom } from './core.ts'
import type { OfferedPatch } from './ports.ts'

/** Where a patch may be had: announced by the channel, or named by a person. */
export interface PatchPlace {
  /** A path or an address. */
  readonly from: string
  readonly announced?: OfferedPatch['announced']
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
    core.say(`bistable: ${code}: ${message}; chunks are fetched instead`, 'warning')
  }
  try {
    const { engine, config, clock } = core.ports
    const opened = exact(await engine.open(place.from, signal))
    const { bytesPerSecond } = config.agent.policy.download
    const slow = isAddress(place.from) && bytesPerSecond !== undefined
    const source = slow ? limited(opened, bytesPerSecond, clock) : opened
    return { source, announced: place.announced, onRefused, close: () => source.close() }
  } catch (error) {
    if (signal.aborted || !isBistableError(error)) throw error
    onRefused(error)
    return undefined
  }
}
