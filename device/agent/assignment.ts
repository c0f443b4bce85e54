import { KiB } from '../../base/bytes.ts'
import { authenticateAssignment } from '../../bundle/authentic.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { AuthenticAssignment } from '../../bundle/types.ts'
import { deviceErrors } from '../errors.ts'
import type { Assigned, RecordBody } from '../records/record.ts'
import type { Core } from './core.ts'
import { fetchSigned } from './fleet-file.ts'
import { type ClockFacts, earliestNow } from './time.ts'

/** Directed mode: which release this one device shall run, by the fleet's word. */

const MAX_ASSIGNMENT_BYTES = 16 * KiB

/**
 * Whose it is, and whether it is new: the same word again is fine, an older or a second one of the same number is not.
 * The sequence is one per device, whatever the device was called when it was accepted. Pure.
 * @throws ASSIGNMENT_OTHER_DEVICE, ASSIGNMENT_REPLAYED
 */
export function judgeAssignment(
  { statement, digest }: AuthenticAssignment,
  accepted: Assigned | undefined,
  deviceId: string | undefined,
): Assigned {
  const { device, sequence, release, number, bundle, notBefore, expires, allowDowngrade } = statement
  if (device !== deviceId) {
    throw deviceErrors.ASSIGNMENT_OTHER_DEVICE(
      `the assignment is for device ${device}, this is ${deviceId ?? 'a device without an id'}`,
    )
  }
  if (accepted !== undefined && sequence < accepted.sequence) {
    throw deviceErrors.ASSIGNMENT_REPLAYED(`its sequence is ${sequence}, ${accepted.sequence} was accepted before`)
  }
  if (accepted !== undefined && sequence === accepted.sequence && digest !== accepted.digest) {
    throw deviceErrors.ASSIGNMENT_REPLAYED(`another assignment with sequence ${sequence} was accepted before`)
  }
  return {
    sequence,
    digest,
    release,
    number,
    allowDowngrade,
    expires,
    ...(notBefore === undefined ? {} : { notBefore }),
    ...(bundle === undefined ? {} : { bundle }),
  }
}

export type AssignedState = 'in-force' | 'early' | 'expired'

/**
 * Whether an accepted assignment counts now. What cannot be known is answered so that nothing is installed too early:
 * without a set clock only the newest verified time can show that `notBefore` has come, or that it has expired. Pure.
 */
export function assignedState(assigned: Assigned, body: Pick<RecordBody, 'verifiedTime'>, clock: ClockFacts) {
  const now = earliestNow(body, clock)
  if (assigned.expires !== null && Date.parse(assigned.expires) <= now) return 'expired'
  if (assigned.notBefore !== undefined && now < Date.parse(assigned.notBefore)) return 'early'
  return 'in-force' satisfies AssignedState
}

/** The assignment that counts now, if any. */
export async function assignedNow(core: Core): Promise<Assigned | undefined> {
  const { assignment } = core.body
  if (assignment === undefined) return undefined
  return assignedState(assignment, core.body, await clockFacts(core)) === 'in-force' ? assignment : undefined
}

export async function clockFacts(core: Core): Promise<ClockFacts> {
  const { clock } = core.ports
  return { wall: clock.wall(), synchronised: await clock.synchronised() }
}

/**
 * Looks for `assignments/DEVICE.json` beside `channels/` and accepts it when it is new. A file that is not there changes
 * nothing: whoever can hide it must not set the device free.
 * @throws ASSIGNMENT_*, and as `fetchSigned`
 */
export async function checkAssignment(core: Core, channel: URL, outer: AbortSignal): Promise<void> {
  const { deviceId } = core.ports
  if (deviceId === undefined) return
  const url = new URL(`../assignments/${deviceId}.json`, channel)
  const found = await fetchSigned(core, url, channel, MAX_ASSIGNMENT_BYTES, outer, (bytes) =>
    authenticateAssignment(bytes, core.trusted),
  )
  if (found !== undefined) await acceptAssignment(core, judgeAssignment(found, core.body.assignment, deviceId))
}

/** Durable before anything follows from it. */
export async function acceptAssignment(core: Core, assigned: Assigned): Promise<void> {
  if (core.body.assignment?.digest === assigned.digest) return
  await core.update((body) => ({ ...body, assignment: assigned }))
  core.ports.say(`bistable: assignment ${assigned.sequence} accepted release=${formatNumber(assigned.number)}`)
}

/**
 * Judges the assignment that a bundle carries, without accepting it yet.
 * @throws ASSIGNMENT_OTHER_DEVICE, ASSIGNMENT_REPLAYED, ASSIGNMENT_EXPIRED, ASSIGNMENT_EARLY
 */
export async function judgeCarried(core: Core, carried: AuthenticAssignment): Promise<Assigned> {
  const assigned = judgeAssignment(carried, core.body.assignment, core.ports.deviceId)
  const clock = await clockFacts(core)
  const state = assignedState(assigned, core.body, clock)
  const now = clock.synchronised ? clock.wall.toISOString() : 'unknown, the clock is not set'
  if (state === 'expired') {
    throw deviceErrors.ASSIGNMENT_EXPIRED(`the assignment expired at ${assigned.expires}; the time is ${now}`)
  }
  if (state === 'early') {
    throw deviceErrors.ASSIGNMENT_EARLY(`the assignment begins at ${assigned.notBefore}; the time is ${now}`)
  }
  return assigned
}
