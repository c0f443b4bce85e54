import type { Clock, Processes } from '../agent/ports.ts'
import { deviceErrors } from '../errors.ts'

/** Health checks: executables of the image; exit 0 is healthy. Every result is kept, with its duration. */

export interface CheckRun {
  readonly name: string
  readonly required: boolean
  readonly ok: boolean
  /** Milliseconds of the last run. */
  readonly ms: number
  /** How often it was run. */
  readonly runs: number
  /** Why it is not healthy, with what the check said; for a healthy one, what it said. */
  readonly said: string
}

export interface HealthReport {
  readonly ok: boolean
  readonly checks: readonly CheckRun[]
}

export interface HealthConfig {
  readonly required: readonly string[]
  readonly wanted: readonly string[]
  /** Seconds, one run of one check. */
  readonly checkSeconds: number
}

interface HealthPorts {
  readonly processes: Processes
  readonly clock: Clock
  readonly systemd: boolean
}

/** Between two rounds of checks that did not pass yet. */
const PAUSE_MS = 2000
const BOOT_COMPLETE = 'boot-complete.target'
/** More checks than this are a mistake in a glob; each costs time from the deadline. */
const MAX_CHECKS = 64

/** Runs each check once. Required checks come first, in byte order of their paths. */
export async function runChecks(ports: HealthPorts, config: HealthConfig, signal: AbortSignal): Promise<HealthReport> {
  const checks: CheckRun[] = []
  for (const check of await listChecks(ports, config)) {
    signal.throwIfAborted()
    checks.push(await runOne(ports, check, config.checkSeconds * 1000, 1, signal))
  }
  return { ok: healthy(checks), checks }
}

/**
 * Runs every required check until it has passed once, within `deadlineMs`; then the wanted ones, once.
 * A check that is slow to become healthy costs nothing but time; one that passed is not asked again.
 */
export async function waitHealthy(
  ports: HealthPorts,
  config: HealthConfig,
  deadlineMs: number,
  signal: AbortSignal,
): Promise<HealthReport> {
  const { clock } = ports
  const end = clock.now() + deadlineMs
  const all = await listChecks(ports, config)
  const results = new Map<string, CheckRun>()
  for (;;) {
    for (const check of all.filter((c) => c.required && results.get(c.name)?.ok !== true)) {
      const left = end - clock.now()
      if (left <= 0) break
      signal.throwIfAborted()
      const runs = (results.get(check.name)?.runs ?? 0) + 1
      results.set(check.name, await runOne(ports, check, Math.min(left, config.checkSeconds * 1000), runs, signal))
    }
    const waiting = all.filter((c) => c.required && results.get(c.name)?.ok !== true)
    if (waiting.length === 0 || clock.now() + PAUSE_MS >= end) {
      // Never asked, because others used up the time: not healthy, and said so.
      for (const { name } of waiting.filter((c) => !results.has(c.name)))
        results.set(name, { name, required: true, ok: false, ms: 0, runs: 0, said: 'never run: no time was left' })
      break
    }
    await clock.sleep(PAUSE_MS, signal)
  }
  for (const check of all.filter((c) => !c.required)) {
    signal.throwIfAborted()
    if (clock.now() < end) {
      const ms = Math.min(end - clock.now(), config.checkSeconds * 1000)
      results.set(check.name, await runOne(ports, check, ms, 1, signal))
    }
  }
  const checks = [...results.values()]
  return { ok: healthy(checks), checks }
}

/** One sentence on what failed. */
export function healthFailure(report: HealthReport): Error {
  const failed = report.checks.filter((check) => check.required && !check.ok)
  const names = failed.map((check) => `${check.name} (${check.said})`)
  return deviceErrors.HEALTH_FAILED(`required checks did not pass: ${names.join('; ')}`)
}

const healthy = (checks: readonly CheckRun[]) => checks.every((check) => check.ok || !check.required)

interface Check {
  readonly name: string
  readonly required: boolean
  readonly command: readonly [string, ...string[]]
}

async function listChecks({ processes, systemd }: HealthPorts, config: HealthConfig): Promise<readonly Check[]> {
  const found: Check[] = []
  for (const [required, globs] of [
    [true, config.required],
    [false, config.wanted],
  ] as const) {
    for (const pattern of globs) {
      const paths = await processes.glob(pattern)
      // A check that is named outright and is not there must fail, not vanish.
      const named = paths.length === 0 && !pattern.includes('*') ? [pattern] : paths
      found.push(...named.map((path): Check => ({ name: path, required, command: [path] })))
    }
  }
  if (found.length > MAX_CHECKS) {
    throw deviceErrors.CONFIG_INVALID(`${found.length} health checks are named, at most ${MAX_CHECKS} are allowed`)
  }
  // systemd's own word on a completed boot: the target pulls in whatever the image hangs on it.
  if (systemd) found.push({ name: BOOT_COMPLETE, required: true, command: ['systemctl', 'start', BOOT_COMPLETE] })
  return found
}

async function runOne(
  { processes, clock }: HealthPorts,
  { name, required, command }: Check,
  ms: number,
  runs: number,
  signal: AbortSignal,
): Promise<CheckRun> {
  const start = clock.now()
  const { exit, timedOut, said } = await processes.run(command, ms, signal)
  const ok = exit === 0
  const why = timedOut ? `no answer within ${Math.round(ms / 1000)} s` : `exit ${exit ?? 'by a signal'}`
  const text = said.trim()
  return {
    name,
    required,
    ok,
    ms: Math.round(clock.now() - start),
    runs,
    said: ok ? text : [why, text].filter(Boolean).join(': '),
  }
}
