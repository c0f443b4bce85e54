import { deviceErrors } from '../errors.ts'
import { type Check, type CheckRun, type HealthConfig, type HealthPorts, listChecks, runOne } from './checks.ts'

/** Health of a release: every check that must pass, until it has, and then for as long as it must stay so. */

export interface HealthReport {
  readonly ok: boolean
  readonly checks: readonly CheckRun[]
}

/** Between two rounds of checks that did not pass yet. */
const PAUSE_MS = 2000

/** Runs each check once. Required checks come first, in byte order of their paths. */
export async function runChecks(ports: HealthPorts, config: HealthConfig, signal: AbortSignal): Promise<HealthReport> {
  const checks: CheckRun[] = []
  for (const check of await listChecks(ports, config)) {
    signal.throwIfAborted()
    checks.push(await runOne(ports.clock, check, check.limit, undefined, signal))
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
  const ask = async (check: Check) => {
    signal.throwIfAborted()
    const ms = Math.min(end - clock.now(), check.limit)
    results.set(check.name, await runOne(clock, check, ms, results.get(check.name), signal))
  }
  for (;;) {
    for (const check of all.filter((c) => c.required && results.get(c.name)?.ok !== true)) {
      if (end - clock.now() <= 0) break
      await ask(check)
    }
    const waiting = all.filter((c) => c.required && results.get(c.name)?.ok !== true)
    if (waiting.length === 0 || clock.now() + PAUSE_MS >= end) {
      // Never asked, because others used up the time: not healthy, and said so.
      for (const { name } of waiting.filter((c) => !results.has(c.name))) results.set(name, neverRun(name))
      break
    }
    await clock.sleep(PAUSE_MS, signal)
  }
  for (const check of all.filter((c) => !c.required)) if (clock.now() < end) await ask(check)
  const checks = [...results.values()]
  return { ok: healthy(checks), checks }
}

/**
 * Asks the required checks of a healthy report again and again, every `everySeconds` and once more at the end. The first
 * failure ends it: what passed once and fails now is not healthy.
 * @param ms how long
 * @param done asked between two checks: true ends it early, with what is known
 */
export async function stayHealthy(
  ports: HealthPorts,
  config: HealthConfig,
  passed: HealthReport,
  ms: number,
  signal: AbortSignal,
  done: () => boolean = () => false,
): Promise<HealthReport> {
  const { clock } = ports
  const start = clock.now()
  const required = (await listChecks(ports, config)).filter((check) => check.required)
  const results = new Map(passed.checks.map((check) => [check.name, check]))
  const report = (): HealthReport => ({ ok: healthy([...results.values()]), checks: [...results.values()] })
  while (clock.now() - start < ms && !done()) {
    // In small steps: whoever ends it early is not kept waiting.
    const round = Math.min(clock.now() + config.plan.everySeconds * 1000, start + ms)
    while (clock.now() < round && !done())
      await clock.sleep(Math.max(1, Math.min(PAUSE_MS, round - clock.now())), signal)
    for (const check of required) {
      signal.throwIfAborted()
      if (done()) return report()
      const run = await runOne(clock, check, check.limit, results.get(check.name), signal)
      // Stopped in the middle of a check, or decided meanwhile: that is no failure of the release.
      signal.throwIfAborted()
      if (done()) return report()
      if (run.ok) {
        results.set(check.name, run)
        continue
      }
      const after = Math.round((clock.now() - start) / 1000)
      results.set(check.name, { ...run, said: `passed, and failed ${after} s later: ${run.said}` })
      return report()
    }
  }
  return report()
}

/** One sentence on what failed. */
export function healthFailure(report: HealthReport): Error {
  const failed = report.checks.filter((check) => check.required && !check.ok)
  const names = failed.map((check) => `${check.name} (${check.said})`)
  return deviceErrors.HEALTH_FAILED(`required checks did not pass: ${names.join('; ')}`)
}

const healthy = (checks: readonly CheckRun[]) => checks.every((check) => check.ok || !check.required)

const neverRun = (name: string): CheckRun => ({
  ...{ name, required: true, ok: false, ms: 0, slowestMs: 0, runs: 0, failures: 0 },
  said: 'never run: no time was left',
})
