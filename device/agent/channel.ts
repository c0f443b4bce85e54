import { KiB, type Sha256 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import { FRESHNESS_PAYLOAD_TYPE, type FreshnessStatement, parseFreshness } from '../../bundle/freshness.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { decodeEnvelope } from '../../keys/dsse.ts'
import { walkRoots } from '../../keys/root.ts'
import { verifyEnvelope } from '../../keys/threshold.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { shown } from '../doors/request.ts'
import { deviceErrors } from '../errors.ts'
import type { FreshnessSeen, RecordBody } from '../records/record.ts'
import type { Core } from './core.ts'

/** Asking a channel what is newest: fetch, verify with the fleet role, judge freshness, compare with what is here. */

export const MAX_CHANNEL_BYTES = 16 * KiB
/** Newer roots followed in one check. */
const MAX_NEW_ROOTS = 32
const FETCH_MS = 60_000
/** A synchronised clock may differ this much from the publisher's. */
const CLOCK_SKEW_MS = 24 * 3600 * 1000

export type Decision = 'up-to-date' | 'update' | 'older' | 'blocked' | 'armed'

export interface CheckResult {
  readonly decision: Decision
  readonly number: ReleaseNumber
  readonly digest: Sha256
  /** Where the bundle is. */
  readonly bundle: string
  readonly size: number
  readonly freshness: FreshnessSeen
  /** For people. */
  readonly message: string
}

export interface ClockFacts {
  readonly wall: Date
  readonly synchronised: boolean
}

/**
 * Judges a verified freshness statement by what the device has seen and by its clock. A clock that is not
 * synchronised is not believed: then only the newest verified time counts, which can be too old but never too new.
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
  const known = body.verifiedTime === undefined ? 0 : Date.parse(body.verifiedTime)
  const now = clock.synchronised ? wall : known
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

/** What the newest release of the channel means for this device. Pure. */
export function decideUpdate(
  statement: Pick<FreshnessStatement, 'number' | 'release'>,
  body: RecordBody,
  running: { readonly slot: 'a' | 'b'; readonly number: ReleaseNumber },
): { readonly decision: Decision; readonly message: string } {
  const shown = formatNumber(statement.number)
  const here = body.slots[running.slot]
  const { state } = body
  if (here?.digest === statement.release) return { decision: 'up-to-date', message: `${shown} is running` }
  if (state.name === 'armed' && state.job.digest === statement.release) {
    return { decision: 'armed', message: `${shown} is armed and waits for a reboot` }
  }
  const blocked = body.blocked.find((entry) => entry.digest === statement.release)
  if (blocked !== undefined) {
    return { decision: 'blocked', message: `${shown} is blocked since ${blocked.at}: ${blocked.reason}` }
  }
  if (compareNumbers(statement.number, body.installFloor) < 0) {
    return {
      decision: 'older',
      message: `${shown} is older than ${formatNumber(body.installFloor)}, which is committed`,
    }
  }
  if (here === undefined && compareNumbers(statement.number, running.number) === 0) {
    return { decision: 'up-to-date', message: `${shown} is running` }
  }
  return { decision: 'update', message: `${shown} is newer than ${formatNumber(running.number)}` }
}

/** The channel's name is the last part of its address: so one channel's file cannot stand in for another's. */
export function channelName(url: URL): string {
  const last = decodeURIComponent(url.pathname.split('/').at(-1) ?? '')
  return last.replace(/\.json$/, '')
}

/** Fetches and judges the channel at `address`, and records the outcome. @throws CHANNEL_*, TRANSPORT_*, SIGNATURE_* */
export async function checkChannel(core: Core, address: string | undefined, outer: AbortSignal): Promise<CheckResult> {
  const { ports } = core
  if (address === undefined) throw deviceErrors.CHANNEL_UNSET('there is no channel address')
  const url = URL.canParse(address) ? new URL(address) : undefined
  if (url === undefined) throw deviceErrors.CHANNEL_UNSET(`'${address}' is not an address`)
  const statement = await fetchStatement(core, url, outer)
  const clock = { wall: ports.clock.wall(), synchronised: await ports.clock.synchronised() }
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
  const { slot, release: number } = core.line
  return {
    ...decideUpdate(statement, core.body, { slot, number }),
    number: statement.number,
    digest: statement.release,
    bundle: new URL(`../${statement.path}`, url).href,
    size: statement.size,
    freshness,
  }
}

async function fetchStatement(core: Core, url: URL, outer: AbortSignal): Promise<FreshnessStatement> {
  const limit = AbortSignal.timeout(FETCH_MS)
  const signal = AbortSignal.any([outer, limit])
  try {
    const bytes = await core.ports.engine.fetchSmall(url, MAX_CHANNEL_BYTES, signal)
    if (bytes === undefined) throw deviceErrors.CHANNEL_UNSET(`there is no channel file at ${shown(url)}`)
    return await verified(core, bytes, url, signal)
  } catch (error) {
    if (outer.aborted) throw outer.reason
    if (limit.aborted) throw deviceErrors.AGENT_STALLED(`${shown(url)} did not answer within ${FETCH_MS / 1000} s`)
    throw error
  }
}

/** Verifies; when the keys have changed, follows the published roots and verifies again. */
async function verified(core: Core, bytes: Uint8Array, url: URL, signal: AbortSignal): Promise<FreshnessStatement> {
  const envelope = decodeEnvelope(bytes, { maxBytes: MAX_CHANNEL_BYTES })
  const verify = () => {
    // Only after stored roots were lost: keys that a newer root revoked must not count again.
    const { version } = core.body.trust
    if (core.trusted.current.version < version) {
      throw deviceErrors.RECORD_ROOTS(
        `root ${core.trusted.current.version} is known, root ${version} was trusted before`,
      )
    }
    verifyEnvelope(envelope, 'fleet', core.trusted)
  }
  try {
    verify()
  } catch (error) {
    if (!isBistableError(error) || !/^(SIGNATURE_|RECORD_ROOTS$)/.test(error.code)) throw error
    const newer = await followRoots(core, url, signal)
    if (newer === undefined) throw error
    await core.learnRoots(newer)
    verify()
  }
  if (envelope.payloadType !== FRESHNESS_PAYLOAD_TYPE) {
    throw deviceErrors.CHANNEL_WRONG(`the file is a statement of type ${envelope.payloadType}`)
  }
  return parseFreshness(envelope.payload)
}

/** Roots newer than the trusted one, from `roots/N.json` beside `channels/`; each verified by the one before. */
async function followRoots(core: Core, url: URL, signal: AbortSignal): Promise<TrustedRoots | undefined> {
  let trusted = core.trusted
  for (let n = 0; n < MAX_NEW_ROOTS; n++) {
    const next = new URL(`../roots/${trusted.current.version + 1}.json`, url)
    const bytes = await core.ports.engine.fetchSmall(next, MAX_CHANNEL_BYTES, signal)
    if (bytes === undefined) break
    trusted = walkRoots([bytes], trusted)
  }
  return trusted === core.trusted ? undefined : trusted
}
