import { type HealthPlan, MAX_CHECKS, type PlannedCheck } from '../../bundle/health-plan.ts'
import type { Clock, Processes } from '../agent/ports.ts'
import { deviceErrors } from '../errors.ts'
import type { Probed, Probes } from './probes.ts'

/** What there is to check on this device, and one run of one check. */

export interface CheckRun {
  readonly name: string
  readonly required: boolean
  /** Of the last run. */
  readonly ok: boolean
  /** Milliseconds of the last run, and of the slowest. */
  readonly ms: number
  readonly slowestMs: number
  /** How often it was run, and how often it failed. */
  readonly runs: number
  readonly failures: number
  /** Why it is not healthy, with what the check said; for a healthy one, what it said. */
  readonly said: string
}

export interface HealthConfig {
  readonly required: readonly string[]
  readonly wanted: readonly string[]
  /** Seconds, one run of one check that names no limit of its own. */
  readonly checkSeconds: number
  readonly plan: HealthPlan
}

export interface HealthPorts {
  readonly processes: Processes
  readonly clock: Clock
  readonly systemd: boolean
  /** Undefined: nothing is asked over the network, and such a check fails. */
  readonly probes?: Probes | undefined
}

export interface Check {
  readonly name: string
  readonly required: boolean
  /** Milliseconds, one run. */
  readonly limit: number
  readonly run: (ms: number, signal: AbortSignal) => Promise<Probed>
}

const BOOT_COMPLETE = 'boot-complete.target'

/**
 * Every check of this device: the executables, in byte order of their paths, then those of health.json as listed there,
 * then systemd's own word.
 * @throws CONFIG_INVALID when there are more than 64
 */
export async function listChecks(ports: HealthPorts, config: HealthConfig): Promise<readonly Check[]> {
  const { processes, systemd } = ports
  const limit = config.checkSeconds * 1000
  const found: Check[] = []
  for (const [required, globs] of [
    [true, config.required],
    [false, config.wanted],
  ] as const) {
    for (const pattern of globs) {
      const paths = await processes.glob(pattern)
      // A check that is named outright and is not there must fail, not vanish.
      const named = paths.length === 0 && !pattern.includes('*') ? [pattern] : paths
      found.push(...named.map((path): Check => ({ name: path, required, limit, run: program(processes, [path]) })))
    }
  }
  for (const planned of config.plan.checks)
    found.push({
      name: planned.name,
      required: planned.level === 'required',
      limit: planned.seconds === undefined ? limit : planned.seconds * 1000,
      run: (ms, signal) => runPlanned(ports, planned, ms, signal),
    })
  if (found.length > MAX_CHECKS)
    throw deviceErrors.CONFIG_INVALID(`${found.length} health checks are named, at most ${MAX_CHECKS} are allowed`)
  // systemd's own word on a completed boot: the target pulls in whatever the image hangs on it.
  if (systemd)
    found.push({
      name: BOOT_COMPLETE,
      required: true,
      limit,
      run: program(processes, ['systemctl', 'start', BOOT_COMPLETE]),
    })
  return found
}

/** Runs a check once, for at most `ms`. @param before its earlier runs */
export async function runOne(
  clock: Clock,
  { name, required, run }: Check,
  ms: number,
  before: CheckRun | undefined,
  signal: AbortSignal,
): Promise<CheckRun> {
  const start = clock.now()
  const { ok, timedOut, said } = await run(ms, signal)
  const took = Math.round(clock.now() - start)
  const why = timedOut ? `no answer within ${Math.round(ms / 1000)} s` : ''
  const text = said.trim()
  return {
    name,
    required,
    ok,
    ms: took,
    slowestMs: Math.max(took, before?.slowestMs ?? 0),
    runs: (before?.runs ?? 0) + 1,
    failures: (before?.failures ?? 0) + Number(!ok),
    said: ok ? text : [why, text].filter(Boolean).join(': '),
  }
}

function program(processes: Processes, command: readonly [string, ...string[]]): Check['run'] {
  return async (ms, signal) => {
    const { exit, timedOut, said } = await processes.run(command, ms, signal)
    if (timedOut || exit === 0) return { ok: exit === 0 && !timedOut, timedOut, said }
    return { ok: false, timedOut, said: [`exit ${exit ?? 'by a signal'}`, said.trim()].filter(Boolean).join(': ') }
  }
}

async function runPlanned(ports: HealthPorts, planned: PlannedCheck, ms: number, signal: AbortSignal): Promise<Probed> {
  const { processes, probes, systemd } = ports
  switch (planned.kind) {
    case 'program':
      return await program(processes, [planned.path])(ms, signal)
    case 'unit':
    case 'no-failed-units':
      if (!systemd) return { ok: false, timedOut: false, said: 'systemd does not run this system' }
      return await askSystemd(processes, planned, ms, signal)
    default:
      break
  }
  if (probes === undefined) return { ok: false, timedOut: false, said: 'nothing can be asked over the network here' }
  if (planned.kind === 'tcp') return await probes.tcp(planned, ms, signal)
  if (planned.kind === 'http') return await probes.http(planned, ms, signal)
  return await probes.broker(planned, ms, signal)
}

/** systemctl(1): "is-active" exits 0 for what is active; "is-failed" for what has failed; "--failed" lists what has. */
async function askSystemd(
  processes: Processes,
  planned: Extract<PlannedCheck, { kind: 'unit' | 'no-failed-units' }>,
  ms: number,
  signal: AbortSignal,
): Promise<Probed> {
  if (planned.kind === 'no-failed-units') {
    const list = ['list-units', '--failed', '--no-legend', '--plain', '--no-pager'] as const
    const { exit, timedOut, said } = await processes.run(['systemctl', ...list], ms, signal)
    const failed = said.trim()
    if (timedOut || exit !== 0) return { ok: false, timedOut, said: failed }
    return {
      ok: failed === '',
      timedOut,
      said: failed === '' ? 'none failed' : `failed: ${failed.replaceAll('\n', ', ')}`,
    }
  }
  const { unit, want = 'active' } = planned
  const verb = want === 'active' ? 'is-active' : 'is-failed'
  const { exit, timedOut, said } = await processes.run(['systemctl', verb, unit], ms, signal)
  // Both print the unit's state. A systemctl that cannot ask prints none, and says nothing about the unit.
  const state = said.trim()
  const known = /^[a-z-]+$/.test(state)
  const ok = known && (want === 'active' ? exit === 0 : exit !== 0 && exit !== undefined && state !== 'failed')
  return { ok: ok && !timedOut, timedOut, said: known ? `${unit} is ${state}` : state }
}
