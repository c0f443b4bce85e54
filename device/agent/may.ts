import { deviceErrors } from '../errors.ts'
import { gate, type PolicyStep, type Wait } from '../policy/gate.ts'
import { placeOf } from '../policy/spread.ts'
import { type Offset, zoneOffset } from '../policy/windows.ts'
import { clockFacts } from './assignment.ts'
import type { Core } from './core.ts'

/** Asks the policies: may the agent take this step by itself now? */

/** How often the conditions of a running download are looked at again. */
const WATCH_MS = 30_000

/** @param what names what is wanted, so that a spread starts anew for another release */
export async function waitFor(core: Core, step: PolicyStep, what: string): Promise<Wait | undefined> {
  const { config, surroundings, deviceId } = core.ports
  const { policy } = config.agent
  const clock = await clockFacts(core)
  const wall = clock.wall.getTime()
  const { verifiedTime } = core.body
  // A clock that the agent put forward shows a time that has passed, and not what time it is.
  const own = (await core.ports.clock.forward?.untouched()) === true
  return gate(step, policy, {
    wall,
    clockPlausible: clock.synchronised || (!own && verifiedTime !== undefined && wall >= Date.parse(verifiedTime)),
    offset: policy[step].windows.length === 0 ? () => 0 : offsetOf(policy.timezone),
    links: (await surroundings?.links()) ?? [],
    power: (await surroundings?.power()) ?? { mains: true, batteryPercent: undefined },
    place: deviceId === undefined ? core.activity.lot : placeOf(deviceId, step),
    wantedSince: core.activity.wantedSince(step, what, wall),
  })
}

/** Stops the running work when its policy says no any more; ends when `signal` is aborted. */
export async function keepAsking(core: Core, step: PolicyStep, what: string, signal: AbortSignal): Promise<void> {
  const { clock } = core.ports
  while (!signal.aborted) {
    await clock.sleep(WATCH_MS, signal).catch(() => undefined)
    if (signal.aborted) return
    const wait = await waitFor(core, step, what).catch(() => undefined)
    if (wait === undefined || signal.aborted) continue
    core.activity.stop(asError(wait))
    return
  }
}

export const asError = (wait: Wait): Error => deviceErrors[wait.code](wait.message)

/** Built when first needed: time zones cost memory that most devices never use. */
const offsets = new Map<string | undefined, Offset>()

function offsetOf(zone: string | undefined): Offset {
  const known = offsets.get(zone) ?? zoneOffset(zone)
  offsets.set(zone, known)
  return known
}
