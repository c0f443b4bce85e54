import type { Sha256 } from '../../base/bytes.ts'
import { type ErrorFamily, isBistableError } from '../../base/errors.ts'
import { otherSlot } from '../../bootloader/state.ts'
import { watchUnlock } from '../addons/unlock.ts'
import { deviceErrors } from '../errors.ts'
import type { PolicyStep, Wait } from '../policy/gate.ts'
import { firstPause, pollPause, retryPause } from '../policy/spread.ts'
import { watchSticks } from '../usb/watch.ts'
import { watchAddons } from './addons.ts'
import type { CheckResult } from './channel.ts'
import { type Core, failureFrom } from './core.ts'
import { watchDrift } from './drift-watch.ts'
import { guarded, noteCheck, noteFailure } from './guarded.ts'
import { after, before } from './hooks.ts'
import { clockKeeper } from './lost-clock.ts'
import { keepAsking, waitFor } from './may.ts'
import { checkAnywhere, installAnywhere } from './mirrors.ts'
import { BEAT_MS } from './service-watchdog.ts'
import { runSession } from './session.ts'
import { bringToVerdict } from './verdict.ts'
import { stateCommitted } from './with-state.ts'

/** The daemon: bring a try to its verdict, then ask the channel again and again. Never ends by itself. */

const TICK_MS = 1000
const FEED_MS = 10_000
/** Of the watchdog's time, however short it is. */
const FEED_PART = 3
/** A try that could not even be given up for this long: the watchdog shall end it. */
const WEDGED_MS = 300_000
/** A record is small: a write that takes this long has not merely been slow. */
const STUCK_MS = 120_000
/** @param core after `reconcile` */
export async function runAgent(core: Core, signal: AbortSignal): Promise<void> {
  const keepClock = clockKeeper(core)
  await keepClock()
  const drift = watchDrift(core, signal, async (...asked) => (await import('./drift-verb.ts')).operateDrift(...asked))
  const loops = [
    ticker(core, signal),
    main(core, keepClock, signal),
    watchSticks(core, signal),
    runSession(core, signal),
    drift,
  ]
  loops.push(watchAddons(core, signal), watchUnlock(core, signal))
  await Promise.all(loops)
}

async function main(core: Core, keepClock: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
  await guarded(core, 'health', () => bringToVerdict(core, signal))
  await guarded(core, 'state', () => keepState(core))
  await keepRoom(core)
  const { agent } = core.ports.config
  const { activity } = core
  if (agent.channel === undefined) return
  const interval = agent.pollSeconds * 1000
  let failures = 0
  // Spread over the first minute at most: a fleet that boots together must not ask together.
  await activity.pause(firstPause(interval, core.ports.random()), signal)
  while (!signal.aborted) {
    await keepClock()
    const failed = await guarded(core, 'check', () => poll(core, signal))
    failures = failed === undefined ? 0 : failures + 1
    await guarded(core, 'agent', () => core.apply({ kind: 'checked' }))
    await keepRoom(core)
    const random = core.ports.random()
    const pause =
      failed === undefined
        ? pollPause(interval, random)
        : retryPause(interval, failures, !LASTING_FAMILIES.includes(failed.family), random)
    await activity.pause(Math.min(pause, untilOpen(core)), signal)
  }
}

/** Only a person or a publisher ends these. Whatever else failed may be over at any moment. */
const LASTING_FAMILIES: readonly ErrorFamily[] = ['usage', 'policy', 'device']

/** What a cut has left of a commit, and a trial that was given up of snapshots. */
async function keepState(core: Core): Promise<void> {
  const committed = core.body.state.name !== 'trying' && (await core.bootState()).primary === core.line.slot
  if (committed) await stateCommitted(core.ports, core.line)
}

/** In a trial what room there is belongs to the release that is tried. */
async function keepRoom(core: Core): Promise<void> {
  if (core.body.state.name !== 'trying') await core.ports.space?.keep()
}

/** Milliseconds until what is waited for by the clock. */
function untilOpen(core: Core): number {
  const until = core.activity.waiting?.until
  if (until === undefined) return Number.POSITIVE_INFINITY
  return Math.max(1000, until - core.ports.clock.wall().getTime())
}

/** One check of the channel, and what the policies make of it. */
export async function poll(core: Core, signal: AbortSignal): Promise<void> {
  const { agent } = core.ports.config
  await core.exclusive('check', signal, async (inner) => {
    if (core.body.state.name === 'trying') return
    if (await mustWait(core, 'check', '')) return
    await before(core, 'check', {}, inner)
    const found = await checkAnywhere(core, inner)
    core.activity.beat()
    core.say(`bistable: check ${found.decision} ${found.message}`)
    await noteCheck(core, true, undefined, `${found.decision}: ${found.message}`)
    await after(core, 'check', { number: found.number })
    core.activity.waiting = undefined
    if (agent.apply === 'manual') return
    if (found.decision === 'update' && found.bundle !== undefined)
      await installByPolicy(core, { ...found, bundle: found.bundle }, inner)
    if (agent.apply === 'reboot' && core.body.state.name === 'armed') await rebootByPolicy(core, inner)
  })
}

async function installByPolicy(
  core: Core,
  found: { readonly digest: Sha256; readonly bundle: string; readonly patch: CheckResult['patch'] },
  signal: AbortSignal,
): Promise<void> {
  const { digest, bundle, patch } = found
  const { maxBytes } = core.ports.config.agent.policy.download
  const notYet = await waitFor(core, 'apply', digest)
  // Verified in the slot already: only arming is left, and nothing is fetched for it.
  const there = core.body.slots[otherSlot(core.line.slot)]?.digest === digest
  if (there ? setWaiting(core, notYet) : await mustWait(core, 'download', digest)) return
  const done = new AbortController()
  const watching = there ? undefined : keepAsking(core, 'download', digest, done.signal)
  try {
    const options = {
      force: false,
      expect: digest,
      onProgress: progressLines(core),
      mayArm: () => waitFor(core, 'apply', digest),
      ...(maxBytes === undefined ? {} : { maxBytes }),
      ...(patch === undefined ? {} : { patch }),
    }
    const result = await installAnywhere(core, bundle, options, signal)
    core.say(`bistable: ${result.message} fetched=${result.fetched}`)
    if (result.waits !== undefined) setWaiting(core, result.waits)
  } catch (error) {
    const wait =
      isBistableError(error) && error.code.startsWith('POLICY_') ? await waitFor(core, 'download', digest) : undefined
    if (!setWaiting(core, wait)) throw error
  } finally {
    done.abort()
    await watching
  }
}

async function rebootByPolicy(core: Core, signal: AbortSignal): Promise<void> {
  const { state } = core.body
  if (state.name !== 'armed' || (await mustWait(core, 'apply', state.job.digest))) return
  await before(core, 'reboot', state.job, signal)
  await core.apply({ kind: 'reboot-asked' })
}

async function mustWait(core: Core, step: PolicyStep, what: string): Promise<boolean> {
  return setWaiting(core, await waitFor(core, step, what))
}

/** Keeps why nothing happens for `status`, and says it when it is new. */
function setWaiting(core: Core, wait: Wait | undefined): boolean {
  if (wait !== undefined && wait.message !== core.activity.told) {
    core.activity.told = wait.message
    core.say(`bistable: ${wait.code}: ${wait.message}`)
  }
  core.activity.waiting = wait
  return wait !== undefined
}

/** A line whenever another tenth is done: enough for a console, little for a log. */
function progressLines(core: Core) {
  let said = ''
  return ({ phase, image, done, total }: { phase: string; image: string | undefined; done: number; total: number }) => {
    const line = `bistable: install ${phase} ${image ?? ''} ${Math.floor((done / Math.max(total, 1)) * 10) * 10}%`
    if (line === said) return
    said = line
    core.say(line)
  }
}

/** Moves deadlines on, and feeds the watchdog as long as they do. */
export async function ticker(core: Core, signal: AbortSignal): Promise<void> {
  const { clock, watchdog, beat } = core.ports
  const feedMs = Math.min(FEED_MS, (core.ports.config.watchdogSeconds * 1000) / FEED_PART)
  let fedAt = Number.NEGATIVE_INFINITY
  let beatAt = Number.NEGATIVE_INFINITY
  let wedgedSince: number | undefined
  let ticking: Promise<unknown> | undefined
  let tickedAt = clock.now()
  while (!signal.aborted) {
    // Not waited for: a save that hangs in the disk must not keep this loop from seeing it.
    if (ticking === undefined) {
      tickedAt = clock.now()
      ticking = guarded(core, 'agent', () => core.apply({ kind: 'tick' })).finally(() => {
        ticking = undefined
      })
    }
    await endIfStuck(core, clock.now() - tickedAt)
    const { state } = core.body
    const now = clock.now()
    const wedged = state.name === 'trying' && state.failed !== undefined
    wedgedSince = wedged ? (wedgedSince ?? now) : undefined
    const hopeless = wedgedSince !== undefined && now - wedgedSince > WEDGED_MS
    if (watchdog !== undefined && !hopeless && now - fedAt >= feedMs) {
      fedAt = now
      await guarded(core, 'agent', () => watchdog.feed())
    }
    if (now - beatAt >= BEAT_MS) {
      beatAt = now
      // Not waited for: a program that starts slowly must not keep deadlines from moving on. Its own time is shorter.
      void beat?.()
    }
    await rest(core, TICK_MS, signal)
  }
  // In a try the hardware keeps watching until the verdict, even while the agent restarts.
  if (core.body.state.name !== 'trying') await watchdog?.disarm()
}

/** What hangs below us is ended by the end of this process, and init starts it again. @throws AGENT_STUCK */
async function endIfStuck(core: Core, tickMs: number): Promise<void> {
  try {
    core.activity.watch()
    if (tickMs > STUCK_MS) throw deviceErrors.AGENT_STUCK(`a record was not written within ${STUCK_MS / 1000} s`)
  } catch (error) {
    const { code, message } = failureFrom(error)
    core.say(`bistable: ${code}: ${message}`, 'error')
    // Written if the disk still takes it.
    await Promise.race([noteFailure(core, 'agent', code, message).catch(() => undefined), core.ports.clock.sleep(5000)])
    throw error
  }
}

async function rest(core: Core, ms: number, signal: AbortSignal): Promise<void> {
  await core.ports.clock.sleep(ms, signal).catch(() => undefined)
}
