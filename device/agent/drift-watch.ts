import { join } from 'node:path'
import { KiB } from '../../base/bytes.ts'
import { writeFileDurably } from '../../base/durable.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { Drift } from '../drift/drift.ts'
import { type Core, failureFrom } from './core.ts'
import type { Ports } from './ports.ts'

/**
 * How much of the device differs from its release, counted once in a while when nothing else is to be done, and kept: status
 * and reports tell the last count and cost nothing.
 */

export interface DriftSeen {
  readonly at: string
  /** The release that was compared, "EPOCH.COUNTER". */
  readonly release: string
  /** Paths that differ, and how many of them are declared to be the device's own. */
  readonly count: number
  readonly owned: number
}

/** After a start, or an attempt that gave way: a device that boots has better things to do. */
const FIRST_MS = 600_000
const LOOK_MS = 1000
/** Idle or not, a device that needs longer than this has data in its writable paths that nobody wants to be hashed daily. */
const LIMIT_MS = 900_000
const MAX_BYTES = 4 * KiB
const pathOf = (data: string) => join(data, 'drift.json')

/** The last count for the release that runs; undefined: none, or what was kept is not readable. */
export async function driftSeen(core: Pick<Core, 'line' | 'ports'>): Promise<DriftSeen | undefined> {
  const { files, data } = core.ports
  try {
    const bytes = await files.read(pathOf(data), MAX_BYTES)
    const value = bytes && (JSON.parse(Buffer.from(bytes).toString('utf8')) as Record<string, unknown>)
    if (value?.['release'] !== formatNumber(core.line.release)) return undefined
    const { at, release, count, owned } = value
    if (typeof at !== 'string' || !Number.isSafeInteger(count) || !Number.isSafeInteger(owned)) return undefined
    return { at, release: String(release), count: Number(count), owned: Number(owned) }
  } catch {
    return undefined
  }
}

/** Keeps what was counted. Its failure is said, no more: the count was made. */
export async function keepDrift(core: Core, { count, owned }: Pick<Drift, 'count' | 'owned'>): Promise<void> {
  const seen: DriftSeen = { at: core.now().wall, release: formatNumber(core.line.release), count, owned }
  core.activity.drift = seen
  const { files, data, say } = core.ports
  await writeFileDurably(pathOf(data), Buffer.from(`${JSON.stringify(seen)}\n`), files).catch((error: unknown) =>
    say(`bistable: the drift count is not kept: ${failureFrom(error).message}`, 'warning'),
  )
}

/**
 * Counts every `agent.driftHours`, at the lowest claim on processor and disk; gives way at once to any other work.
 * @param measure counts and keeps
 */
export async function watchDrift(
  core: Core,
  signal: AbortSignal,
  measure: (core: Core, signal: AbortSignal) => Promise<Pick<Drift, 'count' | 'owned'>>,
): Promise<void> {
  const { clock, config } = core.ports
  const every = config.agent.driftHours * 3_600_000
  core.activity.drift = await driftSeen(core)
  if (every === 0) return
  const wait = (ms: number) => clock.sleep(ms, signal).catch(() => undefined)
  await wait(FIRST_MS * (1 + core.ports.random()))
  while (!signal.aborted) {
    const left = dueIn(core.activity.drift, every, core.ports)
    if (left > 0) {
      // In pieces: the clock may be set meanwhile.
      await wait(Math.min(left, 3_600_000))
      continue
    }
    const outcome = await attempt(core, signal, measure)
    await wait(outcome === 'gave way' ? FIRST_MS : Math.min(every, 86_400_000))
  }
}

/** Milliseconds; a time in the future is one that a clock had wrong. */
function dueIn(seen: DriftSeen | undefined, every: number, { clock }: Pick<Ports, 'clock'>): number {
  const age = seen === undefined ? Number.POSITIVE_INFINITY : clock.wall().getTime() - Date.parse(seen.at)
  return age < 0 ? 0 : every - age
}

async function attempt(
  core: Core,
  outer: AbortSignal,
  measure: Parameters<typeof watchDrift>[2],
): Promise<'done' | 'gave way'> {
  const { clock, surroundings } = core.ports
  const busy = () => core.activity.busyWith !== undefined || core.body.state.name === 'trying'
  if (busy()) return 'gave way'
  const stop = new AbortController()
  const done = new AbortController()
  const watching = (async () => {
    const end = clock.now() + LIMIT_MS
    while (!done.signal.aborted && !stop.signal.aborted) {
      if (outer.aborted || busy() || clock.now() > end) stop.abort()
      else await clock.sleep(LOOK_MS, done.signal).catch(() => undefined)
    }
  })()
  const calm = await surroundings?.calm({ nice: 19, io: 'idle' })
  try {
    const { count, owned } = await measure(core, stop.signal)
    core.say(`bistable: drift ${count} paths, ${owned} of them the device's own`)
    return 'done'
  } catch (error) {
    if (stop.signal.aborted && (outer.aborted || busy())) return 'gave way'
    const why = stop.signal.aborted ? `not counted within ${LIMIT_MS / 1000} s` : failureFrom(error).message
    core.say(`bistable: drift is not known: ${why}`, 'warning')
    return 'done'
  } finally {
    done.abort()
    await watching
    await calm?.()
  }
}
