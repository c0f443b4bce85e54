import { EXIT, isBistableError } from '../../base/errors.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { assignedNow, judgeCarried } from '../agent/assignment.ts'
import { addOutcome } from '../agent/body.ts'
import { decideUpdate } from '../agent/channel.ts'
import { type Core, failureFrom } from '../agent/core.ts'
import { before } from '../agent/hooks.ts'
import { checkAllowed, installFrom, type Progress } from '../agent/work.ts'
import { systemClock, within } from '../doors/clock.ts'
import { deviceErrors } from '../errors.ts'
import { type Account, fileOf, nameOf } from './account.ts'
import { takeAddons } from './addons.ts'
import { usbErrors } from './errors.ts'
import type { Stick } from './find.ts'
import { StickHook } from './hook.ts'
import { encodeResult, resultName, type StickResult, writeResult } from './result.ts'
import { findOnStick } from './scan.ts'
import type { Sticks } from './sticks.ts'

/** One stick, from being mounted to its result file: its add-ons are applied, the newest acceptable bundle is installed. */

export interface StickOptions {
  /** `check`: look and say; nothing is installed. */
  readonly apply: 'check' | 'install' | 'reboot'
  /** Write the result file where the stick lets us. */
  readonly result: boolean
  /** Program that is told what goes on. */
  readonly hook: string | undefined
  readonly onProgress: (progress: Progress) => void
}

export interface StickReport {
  readonly stick: string
  readonly message: string
  /** "EPOCH.COUNTER" that was armed, or would be. */
  readonly release: string | null
  readonly files: StickResult['files']
  /** What was not looked at, and why the result file could not be written. */
  readonly notes: readonly string[]
}

/** A head that takes longer to read is given up: a stick that is nearly dead must not hold the others back. */
const HEAD_MS = 60_000
const RESULT_MS = 30_000

/**
 * Mounts read-only, looks, installs, writes the result, unmounts. The stick may be pulled at any moment.
 * @throws what refused the newest bundle, USB_*, TRANSPORT_*: after the result was written
 */
export async function useStick(
  core: Core,
  sticks: Sticks,
  stick: Stick,
  options: StickOptions,
  signal: AbortSignal,
): Promise<StickReport> {
  const hook = new StickHook(core.ports.processes, options.hook)
  const account: Account = { files: [], notes: [], journal: [], done: undefined, applied: [] }
  hook.tell('found')
  core.ports.say(`bistable: stick ${stick.name}`)
  let message = ''
  let failed: unknown
  try {
    const type = await sticks.fileSystem(stick)
    core.activity.beat()
    const folder = await sticks.mount(stick, type, 'ro')
    try {
      message = await takeAll(core, folder, options, account, hook, signal)
    } catch (error) {
      failed = error
    } finally {
      await sticks.unmount()
    }
    // Who stopped the work waits for its end, not for a slow stick.
    if (options.result && !signal.aborted) await leaveResult(core, sticks, stick, type, account, failed, message)
  } catch (error) {
    failed ??= error
  }
  const code = failed === undefined ? 'OK' : failureFrom(failed).code
  for (const file of account.files) core.ports.say(`bistable: stick file=${file.name} ${file.code} ${file.message}`)
  hook.tell(failed === undefined ? outcomeOf(account) : 'refused', 100, code)
  await note(core, failed, message)
  await hook.settled()
  if (failed !== undefined) throw failed
  if (options.apply === 'reboot' && account.done !== undefined) {
    // As before every reboot that tries a release.
    await before(core, 'reboot', account.done, signal)
    await core.apply({ kind: 'reboot-asked' })
  }
  const release = account.done === undefined ? null : formatNumber(account.done.number)
  return { stick: stick.name, message, release, files: account.files, notes: account.notes }
}

interface Candidate {
  readonly path: string
  readonly head: BundleHead
}

const outcomeOf = ({ done, applied }: Account) =>
  done !== undefined ? 'armed' : applied.length > 0 ? 'applied' : 'nothing'

/**
 * The add-ons first: they are for the release that runs, and what becomes of them keeps no bundle from being installed.
 * @returns what became of it, for people
 */
async function takeAll(
  core: Core,
  folder: string,
  options: StickOptions,
  account: Account,
  hook: StickHook,
  signal: AbortSignal,
): Promise<string> {
  const { bundles, addons, notes } = await findOnStick(folder)
  account.notes.push(...notes)
  if (bundles.length + addons.length === 0)
    throw usbErrors.USB_NO_BUNDLE('there is no bundle and no add-on among the files of the stick')
  const { messages, refused } = await takeAddons(core, addons, options.apply === 'check', account, signal)
  if (bundles.length === 0 && messages.length === 0) throw refused
  const news = bundles.length === 0 ? [] : [await takeNewest(core, bundles, options, account, hook, signal)]
  return [...news, ...(news.length > 0 && options.apply !== 'check' ? account.applied : messages)].join('; ')
}

/** @returns what became of it, for people */
async function takeNewest(
  core: Core,
  bundles: readonly string[],
  options: StickOptions,
  account: Account,
  hook: StickHook,
  signal: AbortSignal,
): Promise<string> {
  let refused: unknown
  const candidates: Candidate[] = []
  for (const path of bundles) {
    core.activity.beat()
    try {
      const head = await readHead(core, path, signal)
      // A root that came this way revokes keys at once, also when the bundle is not installed.
      await core.learnRoots(head.trusted)
      candidates.push({ path, head })
    } catch (error) {
      if (signal.aborted) throw signal.reason
      refused ??= error
      account.files.push(fileOf(path, error))
    }
  }
  // The newest one's refusal is what a person wants to hear of, before that of files that are no bundles of ours.
  candidates.sort((a, b) => compareNumbers(b.head.statement.number, a.head.statement.number))
  let newest: unknown
  for (const { path, head } of candidates) {
    try {
      if (await isHere(core, head)) {
        const message = `release ${formatNumber(head.statement.number)} (${head.statement.version}) is here already`
        account.files.push({ name: nameOf(path), code: 'OK', message })
        return message
      }
      return await take(core, path, head, options, account, hook, signal)
    } catch (error) {
      if (signal.aborted) throw error
      account.files.push(fileOf(path, error))
      newest ??= error
      // What is wrong with this file says nothing about the next; what is wrong with the device or the stick does.
      if (!isBistableError(error) || !['input', 'authenticity', 'policy'].includes(error.family)) throw error
    }
  }
  throw newest ?? refused
}

async function take(
  core: Core,
  path: string,
  head: BundleHead,
  options: StickOptions,
  account: Account,
  hook: StickHook,
  signal: AbortSignal,
): Promise<string> {
  const { number, version } = head.statement
  const named = `release ${formatNumber(number)} (${version})`
  if (options.apply === 'check') {
    account.files.push({ name: nameOf(path), code: 'OK', message: 'would be installed' })
    return `${named} would be installed`
  }
  const onProgress = (progress: Progress) => {
    const percent = (progress.done / Math.max(1, progress.total)) * 100
    if (progress.phase === 'check') hook.tell('checking', tens(percent))
    else if (progress.phase === 'fill' && progress.image === 'rootfs') hook.tell('installing', tens(percent))
    options.onProgress(progress)
  }
  const journal = (line: string) => account.journal.push(line)
  account.done = await installFrom(core, path, { force: false, expect: head.digest, onProgress, journal }, signal)
  account.files.push({ name: nameOf(path), code: 'OK', message: account.done.message })
  return account.done.message
}

const tens = (percent: number): number => Math.floor(percent / 10) * 10

async function readHead(core: Core, path: string, outer: AbortSignal): Promise<BundleHead> {
  const limit = AbortSignal.timeout(HEAD_MS)
  const signal = AbortSignal.any([outer, limit])
  const { engine } = core.ports
  const source = await engine.open(path, signal)
  try {
    return await engine.head(source, core.trusted, signal)
  } catch (error) {
    if (limit.aborted && !outer.aborted)
      throw deviceErrors.AGENT_STALLED(`${nameOf(path)} could not be read within ${HEAD_MS / 1000} s`)
    throw error
  } finally {
    await source.close()
  }
}

/**
 * True when the release is here already. Judged before the install, which judges again: what a stick holds beside the right
 * bundle must not fill the history.
 * @throws RELEASE_*, ASSIGNMENT_*
 */
async function isHere(core: Core, head: BundleHead): Promise<boolean> {
  const { slot, release: number } = core.line
  const release = { number: head.statement.number, release: head.digest }
  const { decision } = decideUpdate(release, core.body, { slot, number })
  if (decision === 'up-to-date' || decision === 'armed') return true
  const carried = head.assignment === undefined ? undefined : await judgeCarried(core, head.assignment)
  const assigned = carried ?? (await assignedNow(core))
  checkAllowed(core, head, { force: false }, assigned?.release === head.digest && assigned.allowDowngrade)
  return false
}

/** Mounted for writing only now and only for this file. What goes wrong is a note: the outcome stands. */
async function leaveResult(
  core: Core,
  sticks: Sticks,
  stick: Stick,
  type: Awaited<ReturnType<Sticks['fileSystem']>>,
  account: Account,
  failed: unknown,
  message: string,
): Promise<void> {
  const { clock, config, deviceId } = core.ports
  const failure = failed === undefined ? undefined : failureFrom(failed)
  const bytes = encodeResult({
    device: deviceId ?? null,
    product: config.product,
    at: clock.wall().toISOString(),
    clock: (await clock.synchronised()) ? 'synchronised' : 'not-set',
    ok: failed === undefined,
    code: failure?.code ?? 'OK',
    exit: failed === undefined ? 0 : isBistableError(failed) ? failed.exitCode : EXIT.internal,
    message: failure?.message ?? message,
    next: isBistableError(failed) ? failed.next : null,
    running: formatNumber(core.line.release),
    armed: account.done === undefined ? null : formatNumber(account.done.number),
    files: account.files,
    journal: account.journal,
  })
  core.activity.beat()
  try {
    const folder = await sticks.mount(stick, type, 'rw')
    try {
      await within(systemClock, RESULT_MS, writeResult(folder, resultName(deviceId), bytes), () =>
        usbErrors.USB_RESULT(`the stick did not take the result within ${RESULT_MS / 1000} s`),
      )
    } finally {
      await sticks.unmount()
    }
  } catch (error) {
    account.notes.push(failureFrom(error).message)
    core.ports.say(`bistable: ${failureFrom(error).code}: ${failureFrom(error).message}`)
  }
}

/** An install keeps its own outcome; everything else about a stick is kept here, so that status has the file's code. */
async function note(core: Core, failed: unknown, message: string): Promise<void> {
  const at = core.now().wall
  const failure = failed === undefined ? undefined : failureFrom(failed)
  const last = core.body.outcomes.at(-1)
  if (failure !== undefined && last?.code === failure.code && last.what === 'install') return
  if (failure === undefined && core.body.state.name === 'armed' && last?.what === 'install') return
  const outcome = { at, what: 'stick', ok: failure === undefined, ...(failure ?? { message }) }
  await core.update((body) => addOutcome(body, outcome))
}
