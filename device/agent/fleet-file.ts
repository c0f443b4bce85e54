import { KiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { walkRoots } from '../../keys/root.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { within } from '../doors/clock.ts'
import { shown } from '../doors/request.ts'
import { deviceErrors } from '../errors.ts'
import type { Core } from './core.ts'

/** Small fleet-signed files of a publish folder: fetched, verified, and followed to newer roots where keys changed. */

const MAX_ROOT_BYTES = 16 * KiB
/** Newer roots followed in one check. */
const MAX_NEW_ROOTS = 32
const FETCH_MS = 60_000

/**
 * Fetches a file and reads it with `verify`, which verifies before it parses. When the signatures do not hold, or when
 * the file says that there are newer roots, these are looked for beside `channels/` and it is asked again.
 * @param newest the newest root version that the file names
 * @returns undefined when the server has no such file
 * @throws TRANSPORT_*, AGENT_STALLED, RECORD_ROOTS, and as `verify`
 */
export async function fetchSigned<T>(
  core: Core,
  url: URL,
  channel: URL,
  maxBytes: number,
  outer: AbortSignal,
  verify: (bytes: Uint8Array) => T,
  newest: (value: T) => number = () => 0,
): Promise<T | undefined> {
  const { clock } = core.ports
  const limit = new AbortController()
  const signal = AbortSignal.any([outer, limit.signal])
  const late = () => {
    const error = deviceErrors.AGENT_STALLED(`${shown(url)} did not answer within ${FETCH_MS / 1000} s`)
    limit.abort(error)
    return error
  }
  const check = (bytes: Uint8Array): T => {
    // Only after stored roots were lost: keys that a newer root revoked must not count again.
    const { version } = core.body.trust
    if (core.trusted.current.version < version) {
      throw deviceErrors.RECORD_ROOTS(
        `root ${core.trusted.current.version} is known, root ${version} was trusted before`,
      )
    }
    return verify(bytes)
  }
  const fetched = async (): Promise<T | undefined> => {
    core.activity.beat()
    const bytes = await core.ports.engine.fetchSmall(url, maxBytes, signal)
    if (bytes === undefined) return undefined
    let value: T
    try {
      value = check(bytes)
    } catch (error) {
      if (!isBistableError(error) || !/^(SIGNATURE_|RECORD_ROOTS$)/.test(error.code)) throw error
      const newer = await followRoots(core, channel, signal)
      if (newer === undefined) throw error
      await core.learnRoots(newer)
      return check(bytes)
    }
    const announced = newest(value)
    if (announced <= core.trusted.current.version) return value
    const newer = await announcedRoots(core, channel, announced, signal)
    if (newer === undefined) return value
    await core.learnRoots(newer)
    // By the newest keys: they may have replaced those that signed it.
    return check(bytes)
  }
  try {
    // Not left to the door alone: whatever hangs, the next check comes.
    return await within(clock, FETCH_MS, fetched(), late)
  } catch (error) {
    if (outer.aborted) throw outer.reason
    if (limit.signal.aborted) throw limit.signal.reason
    throw error
  }
}

/**
 * Roots that a verified file announces. They may revoke a key that did not sign this file, a release key mostly: without a
 * look here only the next bundle would tell. A folder without them, or with others, keeps no news back.
 */
async function announcedRoots(
  core: Core,
  channel: URL,
  announced: number,
  signal: AbortSignal,
): Promise<TrustedRoots | undefined> {
  try {
    return await followRoots(core, channel, signal)
  } catch (error) {
    if (!isBistableError(error) || signal.aborted) throw error
    core.say(`bistable: root version ${announced} is announced and cannot be followed: ${error.code}: ${error.message}`)
    return undefined
  }
}

/** Roots newer than the trusted one, from `roots/N.json` beside `channels/`; each verified by the one before. */
async function followRoots(core: Core, channel: URL, signal: AbortSignal): Promise<TrustedRoots | undefined> {
  let trusted = core.trusted
  for (let n = 0; n < MAX_NEW_ROOTS; n++) {
    const next = new URL(`../roots/${trusted.current.version + 1}.json`, channel)
    const bytes = await core.ports.engine.fetchSmall(next, MAX_ROOT_BYTES, signal)
    if (bytes === undefined) break
    trusted = walkRoots([bytes], trusted)
  }
  return trusted === core.trusted ? undefined : trusted
}
