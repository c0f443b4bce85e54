import { type HealthReport, healthFailure, waitHealthy } from '../health/health.ts'
import { clip } from '../records/record.ts'
import { addOutcome } from './body.ts'
import { type Core, failureFrom } from './core.ts'
import { checkAnywhere, installAnywhere } from './mirrors.ts'

/** The daemon: bring a try to its verdict, then ask the channel again and again. Never ends by itself. */

const TICK_MS = 1000
const FEED_MS = 10_000
/** Of the watchdog's time, however short it is. */
const FEED_PART = 3
/** A try that could not even be given up for this long: the watchdog shall end it. */
const WEDGED_MS = 300_000
/** First pause after a failed check; doubles up to the poll interval. */
const RETRY_MS = 30_000

/** @param core after `reconcile` */
export async function runAgent(core: Core, signal: AbortSignal): Promise<void> {
  await Promise.all([ticker(core, signal), main(core, signal)])
}

async function main(core: Core, signal: AbortSignal): Promise<void> {
  await guarded(core, 'health', () => bringToVerdict(core, signal))
  const { agent } = core.ports.config
  if (agent.channel === undefined) return
  let failures = 0
  // Spread over the first minute at most: a fleet that boots together must not ask together.
  await rest(core, core.ports.random() * Math.min(agent.pollSeconds, 60) * 1000, signal)
  while (!signal.aborted) {
    const ok = await guarded(core, 'check', () => poll(core, signal))
    failures = ok ? 0 : failures + 1
    await rest(core, pauseMs(agent.pollSeconds * 1000, failures, core.ports.random()), signal)
  }
}

/** Milliseconds until the next poll: the interval with a tenth of jitter; after failures sooner, but ever later. */
export function pauseMs(interval: number, failures: number, random: number): number {
  const base = failures === 0 ? interval : Math.min(interval, RETRY_MS * 2 ** Math.min(failures - 1, 20))
  return base * (0.9 + random * 0.2)
}

/** In a try: checks until they pass, then commit; else give the slot up and reboot. */
export async function bringToVerdict(core: Core, signal: AbortSignal): Promise<HealthReport | undefined> {
  const { state } = core.body
  if (state.name !== 'trying' || state.failed !== undefined) return undefined
  const { health } = core.ports.config
  const report = await waitHealthy(core.ports, health, health.deadlineSeconds * 1000, signal)
  for (const check of report.checks) {
    const kind = check.required ? 'required' : 'wanted'
    core.ports.say(
      `bistable: health ${check.ok ? 'ok' : 'failed'} ${kind} ${check.name} ${check.ms} ms ${clip(check.said)}`,
    )
  }
  const failure = report.ok ? undefined : failureFrom(healthFailure(report))
  const summary = report.checks
    .map((c) => `${c.name.split('/').at(-1)} ${c.ok ? 'ok' : 'failed'} ${c.ms} ms`)
    .join(', ')
  const outcome = { at: core.now().wall, what: 'health', ok: report.ok, message: summary || 'no checks' }
  await guarded(core, 'health', () => core.update((body) => addOutcome(body, outcome)))
  await core.apply(failure === undefined ? { kind: 'healthy' } : { kind: 'unhealthy', failure })
  return report
}

/** One check of the channel, and what the policy makes of it. */
export async function poll(core: Core, signal: AbortSignal): Promise<void> {
  const { agent } = core.ports.config
  await core.exclusive('check', signal, async (inner) => {
    if (core.body.state.name === 'trying') return
    const found = await checkAnywhere(core, inner)
    const news = found.decision === 'update' || found.decision === 'armed'
    core.ports.say(`bistable: check ${found.decision} ${found.message}`)
    await noteCheck(core, true, undefined, `${found.decision}: ${found.message}`)
    if (agent.apply === 'manual' || !news) return
    if (found.decision === 'update' && found.bundle !== undefined) {
      const options = { force: false, expect: found.digest, onProgress: progressLines(core) }
      const done = await installAnywhere(core, found.bundle, options, inner)
      core.ports.say(`bistable: ${done.message} fetched=${done.fetched}`)
    }
    if (agent.apply === 'reboot' && core.body.state.name === 'armed') await core.apply({ kind: 'reboot-asked' })
  })
}

/** A check's outcome goes into the history when it says something new. */
export async function noteCheck(core: Core, ok: boolean, code: string | undefined, message: string): Promise<void> {
  const last = core.body.outcomes.findLast((outcome) => outcome.what === 'check')
  if (last?.ok === ok && last.code === code && last.message === clip(message)) return
  const at = core.now().wall
  await core.update((body) =>
    addOutcome(body, { at, what: 'check', ok, message, ...(code === undefined ? {} : { code }) }),
  )
}

/** A line whenever another tenth is done: enough for a console, little for a log. */
function progressLines(core: Core) {
  let said = ''
  return ({ phase, image, done, total }: { phase: string; image: string | undefined; done: number; total: number }) => {
    const line = `bistable: install ${phase} ${image ?? ''} ${Math.floor((done / Math.max(total, 1)) * 10) * 10}%`
    if (line === said) return
    said = line
    core.ports.say(line)
  }
}

/** Moves deadlines on, and feeds the watchdog as long as they do. */
export async function ticker(core: Core, signal: AbortSignal): Promise<void> {
  const { clock, watchdog } = core.ports
  const feedMs = Math.min(FEED_MS, (core.ports.config.watchdogSeconds * 1000) / FEED_PART)
  let fedAt = Number.NEGATIVE_INFINITY
  let wedgedSince: number | undefined
  while (!signal.aborted) {
    await guarded(core, 'agent', () => core.apply({ kind: 'tick' }))
    const { state } = core.body
    const now = clock.now()
    const wedged = state.name === 'trying' && state.failed !== undefined
    wedgedSince = wedged ? (wedgedSince ?? now) : undefined
    const hopeless = wedgedSince !== undefined && now - wedgedSince > WEDGED_MS
    if (watchdog !== undefined && !hopeless && now - fedAt >= feedMs) {
      fedAt = now
      await guarded(core, 'agent', () => watchdog.feed())
    }
    await rest(core, TICK_MS, signal)
  }
  // In a try the hardware keeps watching until the verdict, even while the agent restarts.
  if (core.body.state.name !== 'trying') await watchdog?.disarm()
}

/** Runs one piece of work; its failure is said and recorded once, and the loop goes on. */
async function guarded(core: Core, what: string, work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    const { code, message } = failureFrom(error)
    if (code === 'AGENT_CANCELLED' || code === 'AGENT_BUSY') return true
    core.ports.say(`bistable: ${code}: ${message}`)
    try {
      const last = core.body.outcomes.at(-1)
      if (last?.code !== code || last.message !== clip(message)) await noteFailure(core, what, code, message)
    } catch (second) {
      core.ports.say(`bistable: the record cannot be written: ${failureFrom(second).message}`)
    }
    return false
  }
}

async function noteFailure(core: Core, what: string, code: string, message: string): Promise<void> {
  if (what === 'check') return noteCheck(core, false, code, message)
  const at = core.now().wall
  await core.update((body) => addOutcome(body, { at, what, ok: false, code, message }))
}

async function rest(core: Core, ms: number, signal: AbortSignal): Promise<void> {
  await core.ports.clock.sleep(ms, signal).catch(() => undefined)
}
