import { join } from 'node:path'
import { KiB } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { NO_PLAN } from '../../bundle/health-plan.ts'
import { deviceErrors } from '../errors.ts'
import type { CheckRun, HealthConfig } from '../health/checks.ts'
import { type HealthReport, healthFailure, stayHealthy, waitHealthy } from '../health/health.ts'
import { clip, type Failure, type Job } from '../records/record.ts'
import { addOutcome } from './body.ts'
import { type Core, failureFrom } from './core.ts'
import { guarded } from './guarded.ts'
import { after, before } from './hooks.ts'
import type { Ports } from './ports.ts'

/** In a try: checks until they pass, a soak, a held commit; then commit, or give the slot up and reboot. */

/** The checks of the last try, as they are kept on the data partition: they outlive a fall back. */
export interface KeptHealth {
  readonly at: string
  readonly slot: string
  /** "EPOCH.COUNTER" */
  readonly release: string
  readonly ok: boolean
  readonly checks: readonly CheckRun[]
}

const MAX_KEPT = 256 * KiB
const keptPath = (data: string) => join(data, 'health.json')

export const healthConfig = ({ config, healthPlan = NO_PLAN }: Pick<Ports, 'config' | 'healthPlan'>): HealthConfig => ({
  ...config.health,
  plan: healthPlan,
})

/** @returns undefined when nothing is on trial */
export async function bringToVerdict(core: Core, signal: AbortSignal): Promise<HealthReport | undefined> {
  const { state } = core.body
  if (state.name !== 'trying' || state.failed !== undefined) return undefined
  const { ports } = core
  const config = healthConfig(ports)
  const { soakSeconds, holdSeconds } = config.plan
  // A person may commit at any time.
  const decided = () => core.body.state.name !== 'trying'
  let report = await waitHealthy(ports, config, ports.config.health.deadlineSeconds * 1000, signal)
  if (report.ok && soakSeconds > 0) {
    core.say(`bistable: health passed, soaking ${soakSeconds} s`)
    report = await stayHealthy(ports, config, report, soakSeconds * 1000, signal, decided)
  }
  await keep(core, state.job, report)
  if (decided()) return report
  let failure = report.ok ? undefined : failureFrom(healthFailure(report))
  if (failure === undefined && state.job.hold === true) {
    report = await held(core, report, config, holdSeconds, signal, decided)
    if (decided()) return report
    await keep(core, state.job, report)
    failure = report.ok ? notCommitted(holdSeconds) : failureFrom(healthFailure(report))
  }
  const refused = failure ?? (await before(core, 'commit', state.job, signal).then(() => undefined, failureFrom))
  await core.apply(refused === undefined ? { kind: 'healthy' } : { kind: 'unhealthy', failure: refused })
  if (core.body.state.name === 'committed') await after(core, 'commit', state.job)
  return report
}

/** Waits for a person, and keeps asking the checks meanwhile. */
async function held(
  core: Core,
  passed: HealthReport,
  config: HealthConfig,
  seconds: number,
  signal: AbortSignal,
  decided: () => boolean,
): Promise<HealthReport> {
  const until = core.ports.clock.wall().getTime() + seconds * 1000
  const message = `healthy; the commit is held until ${new Date(until).toISOString()} for 'bistable commit'`
  core.activity.waiting = { code: 'COMMIT_HELD', message, until }
  core.say(`bistable: COMMIT_HELD: ${message}`)
  try {
    return await stayHealthy(core.ports, config, passed, seconds * 1000, signal, decided)
  } finally {
    core.activity.waiting = undefined
  }
}

const notCommitted = (seconds: number): Failure =>
  failureFrom(deviceErrors.COMMIT_HELD(`healthy, but nobody committed within ${seconds} s`))

/** Says every result, puts a summary into the history and all of it beside the records. A full disk stops none of it. */
async function keep(core: Core, job: Job, report: HealthReport): Promise<void> {
  for (const check of report.checks) {
    const kind = check.required ? 'required' : 'wanted'
    core.say(`bistable: health ${check.ok ? 'ok' : 'failed'} ${kind} ${check.name} ${check.ms} ms ${clip(check.said)}`)
  }
  const summary = report.checks
    .map((c) => `${c.name.split('/').at(-1)} ${c.ok ? 'ok' : 'failed'} ${c.ms} ms`)
    .join(', ')
  const at = core.now().wall
  const outcome = { at, what: 'health', ok: report.ok, message: summary || 'no checks' }
  await guarded(core, 'health', () => core.update((body) => addOutcome(body, outcome)))
  const checks = report.checks.map((check) => ({ ...check, name: clip(check.name), said: clip(check.said) }))
  const kept: KeptHealth = { at, slot: job.slot, release: formatNumber(job.number), ok: report.ok, checks }
  const { data, files } = core.ports
  const bytes = Buffer.from(`${JSON.stringify(kept)}\n`)
  await guarded(core, 'health', () => writeFileDurably(keptPath(data), bytes, files))
}

/** The checks of the last try; undefined when there was none, or what was kept cannot be read. */
export async function lastHealth(data: string, files: Files): Promise<KeptHealth | undefined> {
  try {
    const bytes = await files.read(keptPath(data), MAX_KEPT)
    const value: unknown = bytes === undefined ? undefined : JSON.parse(Buffer.from(bytes).toString('utf8'))
    return isKept(value) ? value : undefined
  } catch {
    return undefined
  }
}

/** Of our own writing, and checked all the same: another version may have written it. */
function isKept(value: unknown): value is KeptHealth {
  if (typeof value !== 'object' || value === null) return false
  const { at, slot, release, ok, checks } = value as Record<string, unknown>
  return (
    [at, slot, release].every((text) => typeof text === 'string') &&
    typeof ok === 'boolean' &&
    Array.isArray(checks) &&
    checks.every((check) => typeof check?.name === 'string' && typeof check.ok === 'boolean')
  )
}
