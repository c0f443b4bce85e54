import { KiB, type Sha256 } from '../../base/bytes.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import {
  type AnnouncedDelta,
  FRESHNESS_PAYLOAD_TYPE,
  type FreshnessStatement,
  parseFreshness,
} from '../../bundle/freshness.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { decodeEnvelope } from '../../keys/dsse.ts'
import { verifyEnvelope } from '../../keys/threshold.ts'
import { shown } from '../doors/request.ts'
import { deviceErrors } from '../errors.ts'
import type { Assigned, FreshnessSeen, RecordBody } from '../records/record.ts'
import { assignedState, checkAssignment, clockFacts } from './assignment.ts'
import type { Core } from './core.ts'
import { fetchSigned } from './fleet-file.ts'
import { type ClockFacts, earliestNow } from './time.ts'

/** Asking a channel what is newest: fetch, verify with the fleet role, judge freshness, compare with what is here. */

export const MAX_CHANNEL_BYTES = 16 * KiB
/** A synchronised clock may differ this much from the publisher's. */
const CLOCK_SKEW_MS = 24 * 3600 * 1000

/** `waits`: assigned, but not yet to be installed, or from nowhere this device could fetch it. */
export type Decision = 'up-to-date' | 'update' | 'older' | 'blocked' | 'armed' | 'waits'

export interface CheckResult {
  readonly decision: Decision
  readonly number: ReleaseNumber
  readonly digest: Sha256
  /** Where the bundle is, and its bytes. */
  readonly bundle: string | undefined
  readonly size: number | undefined
  /** The patch from the running release to this one, if the channel names one. */
  readonly patch:
    | { readonly from: string; readonly size: number; readonly announced: AnnouncedDelta['head'] }
    | undefined
  /** Sequence of the assignment that chose this release; undefined: the channel did. */
  readonly assigned: number | undefined
  readonly freshness: FreshnessSeen
  /** For people. */
  readonly message: string
}

/**
 * Judges a verified freshness statement by what the device has seen and by its clock. A clock that is not
 * synchronised is not believed: then only the newest verified time counts, which can be too old but never too new.
 * Nothing of the clock is kept, so a refusal lasts only as long as its cause.
 * @throws CHANNEL_WRONG, CHANNEL_REPLAYED, CHANNEL_EXPIRED, CHANNEL_FUTURE
 */
export function judgeFreshness(
  statement: FreshnessStatement,
  body: Pick<RecordBody, 'freshness' | 'verifiedTime'>,
  device: { readonly product: string; readonly channel: string },
  clock: ClockFacts,
): FreshnessSeen {
  const { product, channel, issued, expires, number, release } = statement
  if (product !== device.product) {
    throw deviceErrors.CHANNEL_WRONG(`the channel file is for product ${product}, this is ${device.product}`)
  }
  if (channel !== device.channel) {
    throw deviceErrors.CHANNEL_WRONG(`the file at the address of channel ${device.channel} is of channel ${channel}`)
  }
  const seen = body.freshness
  if (seen !== undefined && seen.channel === channel && Date.parse(issued) < Date.parse(seen.issued)) {
    throw deviceErrors.CHANNEL_REPLAYED(`issued at ${issued}, but one of ${seen.issued} was seen before`)
  }
  const wall = clock.wall.getTime()
  if (clock.synchronised && Date.parse(issued) > wall + CLOCK_SKEW_MS) {
    throw deviceErrors.CHANNEL_FUTURE(`issued at ${issued}, it is ${clock.wall.toISOString()} now`)
  }
  const now = earliestNow(body, clock)
  if (Date.parse(expires) <= now) {
    throw deviceErrors.CHANNEL_EXPIRED(`expired at ${expires}, it is at least ${new Date(now).toISOString()}`)
  }
  return {
    channel,
    number,
    digest: release,
    issued,
    expires,
    at: clock.wall.toISOString(),
    clock: clock.synchronised ? 'synchronised' : 'newest-verified-time',
  }
}

/** What a release that was announced or assigned means for this device. Pure. */
export function decideUpdate(
  release: { readonly number: ReleaseNumber; readonly release: Sha256 },
  body: RecordBody,
  running: { readonly slot: 'a' | 'b'; readonly number: ReleaseNumber },
  options: { readonly allowDowngrade?: boolean } = {},
): { readonly decision: Decision; readonly message: string } {
  const shown = formatNumber(release.number)
  const here = body.slots[running.slot]
  const { state } = body
  if (here?.digest === release.release) return { decision: 'up-to-date', message: `${shown} is running` }
  if (state.name === 'armed' && state.job.digest === release.release) {
    return { decision: 'armed', message: `${shown} is armed and waits for a reboot` }
  }
  const blocked = body.blocked.find((entry) => entry.digest === release.release)
  if (blocked !== undefined) {
    return { decision: 'blocked', message: `${shown} is blocked since ${blocked.at}: ${blocked.reason}` }
  }
  if (compareNumbers(release.number, body.securityFloor) < 0) {
    return { decision: 'older', message: `${shown} is below the security floor ${formatNumber(body.securityFloor)}` }
  }
  if (options.allowDowngrade !== true && compareNumbers(release.number, body.installFloor) < 0) {
    return {
      decision: 'older',
      message: `${shown} is older than ${formatNumber(body.installFloor)}, which is committed`,
    }
  }
  const order = compareNumbers(release.number, running.number)
  if (here === undefined && order === 0) return { decision: 'up-to-date', message: `${shown} is running` }
  const what = order > 0 ? 'newer than' : order < 0 ? 'to go back to from' : 'another than'
  return { decision: 'update', message: `${shown} is ${what} ${formatNumber(running.number)}` }
}

/** What an accepted assignment that has not expired means. Pure. */
function decideAssigned(assigned: Assigned, state: 'in-force' | 'early', bundle: unknown, core: Core) {
  if (state === 'early') {
    const message = `${formatNumber(assigned.number)} is assigned, not before ${assigned.notBefore}`
    return { decision: 'waits' as const, message }
  }
  const { slot, release: number } = core.line
  const found = decideUpdate(assigned, core.body, { slot, number }, assigned)
  if (found.decision !== 'update' || bundle !== undefined) return found
  return { decision: 'waits' as const, message: `${formatNumber(assigned.number)} is assigned, but not published here` }
}

/** The channel's name is the last part of its address: so one channel's file cannot stand in for another's. */
export function channelName(url: URL): string {
  const last = decodeURIComponent(url.pathname.split('/').at(-1) ?? '')
  return last.replace(/\.json$/, '')
}

/**
 * Asks for this device's assignment, then for the channel; records both. An assignment in force chooses the release,
 * but the channel still has to be fresh: whoever holds back files must not look like a quiet fleet.
 * @throws CHANNEL_*, ASSIGNMENT_*, TRANSPORT_*, SIGNATURE_*
 */
export async function checkChannel(core: Core, address: string | undefined, outer: AbortSignal): Promise<CheckResult> {
  const { ports } = core
  if (address === undefined) throw deviceErrors.CHANNEL_UNSET('there is no channel address')
  const url = URL.canParse(address) ? new URL(address) : undefined
  if (url === undefined) throw deviceErrors.CHANNEL_UNSET(`'${address}' is not an address`)
  await checkAssignment(core, url, outer)
  const statement = await fetchStatement(core, url, outer)
  const clock = await clockFacts(core)
  const device = { product: ports.config.product, channel: channelName(url) }
  const freshness = judgeFreshness(statement, core.body, device, clock)
  await core.update((body) => ({
    ...body,
    freshness,
    verifiedTime:
      body.verifiedTime !== undefined && Date.parse(body.verifiedTime) > Date.parse(statement.issued)
        ? body.verifiedTime
        : statement.issued,
  }))
  const at = (path: string): string => new URL(`../${path}`, url).href
  const here =
    core.body.slots[core.line.slot]?.digest ?? (await ports.engine.storedRelease(core.line.slot))?.facts.digest
  const named = statement.deltas?.find(({ from }) => from === here)
  const patch = named && { from: at(named.path), size: named.size, announced: named.head }
  const { slot, release: number } = core.line
  const { assignment } = core.body
  const state = assignment === undefined ? 'expired' : assignedState(assignment, core.body, clock)
  if (assignment === undefined || state === 'expired') {
    return {
      ...decideUpdate(statement, core.body, { slot, number }),
      number: statement.number,
      digest: statement.release,
      bundle: at(statement.path),
      size: statement.size,
      patch,
      assigned: undefined,
      freshness,
    }
  }
  // An assignment that came in a bundle says no address; the channel may happen to have the same release.
  const place = assignment.bundle ?? (statement.release === assignment.release ? statement : undefined)
  return {
    ...decideAssigned(assignment, state, place, core),
    number: assignment.number,
    digest: assignment.release,
    bundle: place === undefined ? undefined : at(place.path),
    size: place?.size,
    patch: statement.release === assignment.release ? patch : undefined,
    assigned: assignment.sequence,
    freshness,
  }
}

/** @throws CHANNEL_UNSET, CHANNEL_WRONG, FRESHNESS_INVALID, and as `fetchSigned` */
async function fetchStatement(core: Core, url: URL, outer: AbortSignal): Promise<FreshnessStatement> {
  const verify = (bytes: Uint8Array): FreshnessStatement => {
    const envelope = decodeEnvelope(bytes, { maxBytes: MAX_CHANNEL_BYTES })
    verifyEnvelope(envelope, 'fleet', core.trusted)
    if (envelope.payloadType !== FRESHNESS_PAYLOAD_TYPE) {
      throw deviceErrors.CHANNEL_WRONG(`the file is a statement of type ${envelope.payloadType}`)
    }
    return parseFreshness(envelope.payload)
  }
  const newest = ({ rootVersion }: FreshnessStatement): number => rootVersion
  const found = await fetchSigned(core, url, url, MAX_CHANNEL_BYTES, outer, verify, newest)
  if (found === undefined) throw deviceErrors.CHANNEL_UNSET(`there is no channel file at ${shown(url)}`)
  return found
}
