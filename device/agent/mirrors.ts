import { isBistableError } from '../../base/errors.ts'
import { hurried } from '../doors/impatient.ts'
import { type CheckResult, checkChannel } from './channel.ts'
import { type Core, failureFrom } from './core.ts'
import { type InstallDone, type InstallOptions, installFrom, LASTING } from './work.ts'

/**
 * Several places for the same publish folder, tried in turn. No place is believed: what one gives is verified as ever, and
 * what is wrong with one sends the agent to the next. What arrived in the slot is kept and checked from place to place.
 */

/** A place that gives nothing for so long is left for the next one; only the last has all the patience of its door. */
export const PLACE_MS = 30_000

/** The channel's address and those of its mirrors, in the order of trying. */
export function channelPlaces(core: Core): readonly (string | undefined)[] {
  const { channel, mirrors } = core.ports.config.agent
  return channel === undefined ? [undefined] : [channel, ...mirrors.filter((place) => place !== channel)]
}

/** Asks the channel, at its first place that gives a channel file which holds. @throws the first place's refusal */
export function checkAnywhere(core: Core, signal: AbortSignal): Promise<CheckResult> {
  const { clock } = core.ports
  return inTurn(core, channelPlaces(core), signal, (place, _, last) =>
    last
      ? checkChannel(core, place, signal)
      : hurried(PLACE_MS, clock, place ?? 'the channel', signal, (stop) => checkChannel(core, place, stop)),
  )
}

/** Installs what the channel announced: from where it was announced, then from the same path elsewhere. */
export function installAnywhere(
  core: Core,
  bundle: string,
  options: InstallOptions,
  signal: AbortSignal,
): Promise<InstallDone> {
  const known = channelPlaces(core).filter((place) => place !== undefined)
  const { patch } = options
  const patches = patch === undefined ? [] : samePath(patch.from, known)
  return inTurn(core, samePath(bundle, known), signal, (place, i, last) => {
    // The patch comes from where the bundle comes from.
    const from = patches[i]
    return installFrom(
      core,
      place,
      {
        ...options,
        ...(last ? {} : { placeMs: PLACE_MS }),
        ...(patch === undefined || from === undefined ? {} : { patch: { ...patch, from } }),
      },
      signal,
    )
  })
}

/**
 * The address itself, then the same path under every other place. Pure.
 * @param places addresses of channel files: the publish folder is the parent of the folder they are in
 */
export function samePath(address: string, places: readonly string[]): readonly string[] {
  const folders = places.map((place) => new URL('../', place).href)
  const home = folders.find((folder) => address.startsWith(folder))
  if (home === undefined) return [address]
  const path = address.slice(home.length)
  return [address, ...folders.filter((folder) => folder !== home).map((folder) => `${folder}${path}`)]
}

async function inTurn<Place, T>(
  core: Core,
  places: readonly Place[],
  signal: AbortSignal,
  attempt: (place: Place, i: number, last: boolean) => Promise<T>,
): Promise<T> {
  let first: unknown
  for (const [i, place] of places.entries()) {
    try {
      return await attempt(place, i, i + 1 === places.length)
    } catch (error) {
      first ??= error
      if (signal.aborted || !mayBeThePlace(error)) throw error
      if (i + 1 === places.length) break
      const { code, message } = failureFrom(error)
      core.ports.say(`bistable: ${code}: ${message}; the next mirror is asked`)
    }
  }
  throw first
}

/** True when another place may do better: the bytes did not come, or were not what was announced. */
function mayBeThePlace(error: unknown): boolean {
  if (!isBistableError(error) || LASTING.includes(error.code)) return false
  return ['transport', 'authenticity', 'input'].includes(error.family) || error.code.startsWith('CHANNEL_')
}
