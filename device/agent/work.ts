import { isAddress } from '../../base/address.ts'
import type { Sha256 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { adopt, arm, disarm, vouch } from '../../bootloader/machine.ts'
import { DEFAULT_TRIES, otherSlot, type Slot } from '../../bootloader/state.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { checkApplies } from '../../bundle/policy.ts'
import type { BundleHead, ReleaseNumber } from '../../bundle/types.ts'
import { exact } from '../doors/exact.ts'
import { openImpatient } from '../doors/impatient.ts'
import { shown } from '../doors/request.ts'
import { deviceErrors } from '../errors.ts'
import type { Journal } from '../install/journal.ts'
import type { InstallProgress } from '../install/types.ts'
import type { Wait } from '../policy/gate.ts'
import { clip, type Job } from '../records/record.ts'
import { stateErrors } from '../state/errors.ts'
import { acceptAssignment, assignedNow, judgeCarried } from './assignment.ts'
import { addOutcome, mayBoot } from './body.ts'
import { type Core, failureFrom } from './core.ts'
import { arriving, mover } from './heard.ts'
import { offerHints } from './hints-offer.ts'
import { after, before } from './hooks.ts'
import { openPatch, type PatchPlace, spareFor } from './patch-offer.ts'
import type { BootPort, InstallCall, OfferedPatch } from './ports.ts'

/** What a person or a policy may ask: install, commit, roll back, cancel, verify a slot. */

export interface InstallOptions {
  /** Take a release that is on the block list. Floors, product and hardware are never given up. */
  readonly force: boolean
  /** A person will commit: healthy is not enough. */
  readonly hold?: boolean
  /** The release that the channel announced. */
  readonly expect?: Sha256
  readonly onProgress: (progress: Progress) => void
  readonly journal?: Journal
  /** Asked when the slot is verified: a reason to leave arming for later. A person's install is armed at once. */
  readonly mayArm?: () => Promise<Wait | undefined>
  /** There are other places: give this one up when it gives nothing for so long. Milliseconds. */
  readonly placeMs?: number
  /** Fail with INSTALL_BUDGET rather than fetch more bytes. */
  readonly maxBytes?: number
  /** Paths of bundles whose chunks may serve. */
  readonly reuse?: readonly string[]
  readonly patch?: PatchPlace
}

export interface Progress extends Omit<InstallProgress, 'phase'> {
  readonly phase: InstallProgress['phase'] | 'check'
}

export interface InstallDone {
  readonly slot: Slot
  readonly number: ReleaseNumber
  readonly version: string
  readonly digest: Sha256
  /** Bytes that came through the door, and that were already on the device. */
  readonly fetched: number
  readonly message: string
  /** Verified and not armed, for this reason. */
  readonly waits?: Wait
}

/** Ends an install between its last check and its first word to the bootloader. */
class NotYet extends Error {
  readonly wait: Wait
  constructor(wait: Wait) {
    super(wait.message)
    this.wait = wait
  }
}

/** These bytes fail in the same way on every attempt. */
export const LASTING: readonly string[] = ['INSTALL_CONTENT_DIGEST', 'INSTALL_ROOT_MISMATCH', 'BUNDLE_ROOT_HASH']

/** Fills and verifies the inactive slot and arms it; the running system is untouched whatever happens. */
export async function installFrom(core: Core, from: string, options: InstallOptions, signal: AbortSignal) {
  const { engine, config, clock } = core.ports
  const network = !isLocal(from)
  try {
    await requireSteady(core)
    if (network) await before(core, 'download', {}, signal)
    const { placeMs } = options
    const opened =
      placeMs === undefined
        ? await engine.open(from, signal)
        : await openImpatient((stop) => engine.open(from, stop), from, placeMs, clock, signal)
    const source = network ? arriving(core, opened) : exact(opened)
    const patch = await openPatch(core, options.patch, signal).catch(async (error) => {
      await source.close()
      throw error
    })
    const hints = offerHints(core, from, signal)
    try {
      const head = await engine.head(source, core.trusted, signal, spareFor(core, from, patch, hints))
      const before = core.body.trust.version
      if (head.trusted.current.version < before) {
        // Only after stored roots were lost: keys that a newer root revoked must not count again.
        throw deviceErrors.RECORD_ROOTS(
          `the bundle leads to root ${head.trusted.current.version}, root ${before} was trusted before`,
        )
      }
      await core.learnRoots(head.trusted)
      const carried = head.assignment === undefined ? undefined : await judgeCarried(core, head.assignment)
      const assigned = carried ?? (await assignedNow(core))
      checkAllowed(core, head, options, assigned?.release === head.digest && assigned.allowDowngrade)
      if (carried !== undefined) await acceptAssignment(core, carried)
      if (isLocal(from)) {
        // A stick may be damaged or lie: know it before the old content of the slot is given up.
        await engine.verifyWhole(source, head, signal, (done, total) => {
          const progress: Progress = { phase: 'check', image: undefined, done, total, fetched: 0 }
          core.activity.beat(progress)
          options.onProgress(progress)
        })
      }
      const calm = await core.ports.surroundings?.calm(config.agent.policy.download)
      try {
        const done = await fillAndArm(core, from, { source, head, patch, hints }, options, signal)
        const facts = { ...done, code: done.waits?.code }
        if (network) await after(core, 'download', facts)
        await after(core, 'install', facts)
        if (done.waits === undefined) await after(core, 'arm', facts)
        return done
      } finally {
        await calm?.()
      }
    } finally {
      await hints?.close()
      await patch?.close()
      await source.close()
    }
  } catch (error) {
    const reason = signal.aborted && isBistableError(signal.reason) ? signal.reason : error
    const { name } = core.body.state
    const failure = failureFrom(reason)
    if (name === 'downloading' || name === 'verified') {
      await core.apply({ kind: 'failed', failure, lasting: LASTING.includes(failure.code) })
      await after(core, 'install', { code: failure.code })
    } else {
      const last = core.body.outcomes.at(-1)
      // A policy that meets the same refusal at every poll says it once.
      if (last?.code !== failure.code || last.message !== clip(failure.message)) {
        const at = core.now().wall
        await core.update((body) => addOutcome(body, { at, what: 'install', ok: false, ...failure }))
      }
    }
    throw reason
  }
}

async function fillAndArm(
  core: Core,
  from: string,
  {
    source,
    head,
    patch,
    hints,
  }: Pick<InstallCall, 'source' | 'head' | 'hints'> & {
    readonly patch: OfferedPatch | undefined
  },
  options: InstallOptions,
  signal: AbortSignal,
): Promise<InstallDone> {
  const { boot, engine } = core.ports
  const { force, hold, onProgress } = options
  const { number, version } = head.statement
  const slot = otherSlot(core.line.slot)
  const started = core.now().wall
  const job: Job = {
    kind: 'update',
    slot,
    digest: head.digest,
    number,
    version,
    source: clip(publicName(from)),
    forced: force,
    ...(hold === true ? { hold } : {}),
    started,
  }
  await before(core, 'install', job, signal)
  await core.apply({ kind: 'begin', job })
  const done = { slot, number, version, digest: head.digest }
  let fetched = 0
  const moved = mover(core)
  const steps = {
    source,
    head,
    running: core.line.slot,
    cheapSource: isLocal(from),
    signal,
    hints,
    ...(options.journal === undefined ? {} : { journal: options.journal }),
    ...(options.maxBytes === undefined ? {} : { maxBytes: options.maxBytes }),
    ...(options.reuse === undefined ? {} : { reuse: options.reuse }),
    ...(patch === undefined ? {} : { patch }),
    onProgress: (progress: InstallProgress) => {
      core.activity.beat(progress)
      fetched = progress.fetched
      moved()
      onProgress(progress)
    },
    invalidate: async () => {
      await core.claimInactive()
      await core.apply({ kind: 'filling' })
    },
    beforeArm: async () => {
      await before(core, 'arm', job, signal)
      const wait = await options.mayArm?.()
      if (wait !== undefined) throw new NotYet(wait)
      await core.apply({ kind: 'verified' })
    },
    arm: async () => {
      await boot.write(arm(await core.bootState(), slot, await triesOf(boot)))
      await core.apply({ kind: 'armed', fetched, size: head.size })
    },
  }
  const named = `release ${formatNumber(number)} (${version})`
  try {
    const result = await engine.install(steps)
    return { ...done, fetched: result.fetched, message: `${named} is armed in slot ${slot}; the next boot tries it` }
  } catch (error) {
    if (!(error instanceof NotYet)) throw error
    await core.apply({ kind: 'prepared', why: error.wait.message, fetched, size: head.size })
    return {
      ...done,
      fetched,
      waits: error.wait,
      message: `${named} is verified in slot ${slot}; ${error.wait.message}`,
    }
  }
}

/** With every door but the file's, something has to be fetched. */
const isLocal = (from: string): boolean => !isAddress(from)

/** Status is for everyone: no user name, password or query, which may hold a token. */
function publicName(from: string): string {
  return isAddress(from) && URL.canParse(from) ? shown(new URL(from)) : from
}

/**
 * Refuses a release that is not for this device now.
 * @param allowDowngrade an assignment in force says so for this release
 * @throws CHANNEL_BUNDLE, RELEASE_*
 */
export function checkAllowed(
  core: Core,
  head: BundleHead,
  options: Pick<InstallOptions, 'force' | 'expect'>,
  allowDowngrade: boolean,
): void {
  const { product, hardware } = core.ports.config
  const { body } = core
  if (options.expect !== undefined && head.digest !== options.expect) {
    throw deviceErrors.CHANNEL_BUNDLE(`the bundle is release ${head.digest}, the channel announced ${options.expect}`)
  }
  // One of the names this system answers to, if the release lists any of them; else the first, for the message.
  const name = hardware.find((h) => head.statement.hardware.includes(h)) ?? hardware[0] ?? ''
  const { installFloor, securityFloor } = body
  checkApplies(head.statement, { product, hardware: name, installFloor, securityFloor }, { allowDowngrade })
  const blocked = body.blocked.find((entry) => entry.digest === head.digest)
  if (blocked !== undefined && !options.force) {
    throw deviceErrors.RELEASE_BLOCKED(
      `release ${formatNumber(head.statement.number)} failed here at ${blocked.at}: ${blocked.reason}`,
    )
  }
}

/** The other slot may be written only when it is not needed: this one is primary, and nothing is being tried. */
async function requireSteady(core: Core): Promise<void> {
  const { state } = core.body
  // The initramfs ends every try on such a device, and its block list would be forgotten: tried again and again for ever.
  if ((await core.ports.state?.facts())?.filesystem === 'tmpfs')
    throw stateErrors.STATE_IN_MEMORY('the data partition could not be mounted; /data is in memory until the next boot')
  if (state.name === 'trying') {
    throw deviceErrors.AGENT_STATE(
      `release ${formatNumber(state.job.number)} is being tried; the other slot is the way back`,
    )
  }
  const { slot } = core.line
  const boot = await core.bootState()
  if (boot.primary !== slot) {
    throw deviceErrors.AGENT_STATE(`slot ${slot} runs, but slot ${boot.primary} is primary and must not be written`, {
      next: "Reboot into the primary slot, or make this one primary with 'bistable commit'.",
    })
  }
}

/** A person vouches for the running slot: commits a try, or makes primary what runs because the primary does not, or by hand. */
export async function commitNow(core: Core): Promise<string> {
  const { slot } = core.line
  if (core.body.state.name === 'trying') {
    const { job } = core.body.state
    await before(core, 'commit', job)
    await core.apply({ kind: 'healthy' })
    // Asked again: the machine may have moved on.
    if ((core.body.state.name as string) === 'committed') await after(core, 'commit', job)
    if (core.body.state.name !== 'trying') return `slot ${slot} is committed`
    const last = core.body.outcomes.at(-1)
    throw deviceErrors.AGENT_STATE(`slot ${slot} could not be committed: ${last?.code} ${last?.message}`)
  }
  const boot = await core.bootState()
  if (boot.primary === slot) return `slot ${slot} is committed already`
  await core.ports.boot.write(boot.spare ? adopt(boot, slot) : vouch(boot, slot))
  await core.keepNote()
  const at = core.now().wall
  await core.update((body) => addOutcome(body, { at, what: 'commit', ok: true, message: `slot ${slot} was adopted` }))
  return `slot ${slot} is primary now`
}

/** Stops what runs, or takes back what is armed. */
export async function cancelNow(core: Core): Promise<string> {
  if (core.activity.stop(deviceErrors.AGENT_CANCELLED('cancelled on request')))
    return 'the running work is being stopped'
  const { name } = core.body.state
  // An install that failed before its first byte leaves armed what was armed before it.
  const state = await core.bootState()
  const armed = state.trial === otherSlot(core.line.slot) && state.left > 0
  if (name !== 'armed' && !armed) throw deviceErrors.AGENT_IDLE(`the state is ${name}`)
  if (armed) await core.ports.boot.write(disarm(state, mayBoot(core.body, otherSlot(core.line.slot))))
  await core.apply({ kind: 'disarmed' })
  return 'the armed release is not tried; the next boot stays here'
}

/** Recomputes the root of a slot's images from the medium against the signed statement kept for it. */
export async function verifySlot(core: Core, slot: Slot, signal: AbortSignal) {
  const stored = await core.ports.engine.storedRelease(slot)
  if (stored === undefined) throw deviceErrors.VERIFY_NO_RELEASE(`nothing is recorded about slot ${slot}`)
  const fault = await core.ports.engine.slotFault(slot, stored.statement, signal)
  return { slot, ok: fault === undefined, number: stored.facts.number, version: stored.facts.version, fault }
}

/** The usual number of tries, or as many as the bootloader can count. */
export async function triesOf(boot: BootPort): Promise<number> {
  return Math.min(DEFAULT_TRIES, (await boot.describe()).maxTries)
}
