import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { clip, type Failure, type Job, type RecordBody, type SlotFacts } from '../records/record.ts'
import { addOutcome, block, factsOf, recordCommit, withSlot } from './body.ts'
import { deadlineOf, type Limits } from './states.ts'

/**
 * The agent's state machine: `idle -> downloading -> verified -> armed -> trying -> committed`, or `-> fallen-back`.
 * Pure. The runner saves the returned body first, then carries out the effects in order, then prints the lines.
 */

export type Event =
  | { readonly kind: 'begin'; readonly job: Job }
  /** What was once committed is to be tried again. */
  | { readonly kind: 'begin-rollback'; readonly job: Job }
  /** A person took back what was armed; the boot state says so already. */
  | { readonly kind: 'disarmed' }
  /** Bytes moved: the stall deadline starts again. */
  | { readonly kind: 'progress' }
  /** The first write to the slot comes next: what is recorded about it is void. */
  | { readonly kind: 'filling' }
  /** The slot was verified on the medium; arming comes next. */
  | { readonly kind: 'verified' }
  /** The boot state was written. `fetched` and `size`: bytes of the bundle that came through the door, and in all. */
  | { readonly kind: 'armed'; readonly fetched?: number; readonly size?: number }
  /** The slot was verified on the medium; arming waits for its own time. */
  | { readonly kind: 'prepared'; readonly why: string; readonly fetched: number; readonly size: number }
  /** A check of the channel has ended, one way or the other. */
  | { readonly kind: 'checked' }
  /** The work ended without arming. `lasting`: trying the same bytes again cannot help. */
  | { readonly kind: 'failed'; readonly failure: Failure; readonly lasting: boolean }
  | { readonly kind: 'healthy' }
  /** The boot state names the slot as primary now. */
  | { readonly kind: 'boot-committed'; readonly securityFloor: ReleaseNumber }
  | { readonly kind: 'unhealthy'; readonly failure: Failure }
  | { readonly kind: 'reboot-asked' }
  | { readonly kind: 'tick' }

export type Effect =
  /**
   * One boot-state write. `commit` and `refuse`: the slot on trial. `fresh`: both copies are lost, the running slot is
   * primary. `adopt`: the spare runs because the primary does not come up. `retire`: the spare is below the security
   * floor. `renew`: one copy is torn.
   */
  | { readonly do: 'write-boot'; readonly change: 'commit' | 'refuse' | 'fresh' | 'adopt' | 'retire' | 'renew' }
  /** Stop the install that runs. */
  | { readonly do: 'stop-work'; readonly failure: Failure }
  /** Tell the bootloader that the agent came up; what was left there is in the record by now. */
  | { readonly do: 'came-up' }
  /** `forced`: past an init that does not do it. */
  | { readonly do: 'reboot'; readonly forced?: true }
  /** Check the channel now. */
  | { readonly do: 'wake' }

export interface Now {
  /** Milliseconds, monotonic, of this boot. */
  readonly mono: number
  /** ISO 8601, the device's clock. */
  readonly wall: string
  /** Names this boot of the kernel. */
  readonly bootId: string
}

export interface Machine {
  readonly body: RecordBody
  /** Monotonic time at which `tick` moves on: every state has one (states.ts). */
  readonly deadline: number
  /** A reboot was asked for and has not come yet. */
  readonly rebooting?: boolean
}

export interface Step extends Machine {
  readonly effects: readonly Effect[]
  /** For people and tests on the console; stable words. */
  readonly lines: readonly string[]
}

/** Takes one event; an event that does not fit the state changes nothing. */
export function decide(machine: Machine, event: Event, now: Now, limits: Limits): Step {
  const { body, deadline } = machine
  const { state } = body
  const same: Step = { ...machine, effects: [], lines: [] }
  const to = (next: RecordBody, more: Partial<Step> = {}): Step => {
    const line = stateLine(next)
    const lines = line === stateLine(body) ? [] : [line]
    return { effects: [], lines, deadline: deadlineOf(next, now.mono, limits), ...more, body: next }
  }
  const since = now.wall
  switch (event.kind) {
    case 'begin':
      // While a try runs the other slot is the way back: it must not be written.
      if (state.name === 'trying' || state.name === 'downloading' || state.name === 'verified') return same
      return to({ ...body, state: { name: 'downloading', job: event.job, since } })
    case 'begin-rollback': {
      if (['trying', 'downloading', 'verified'].includes(state.name)) return same
      const next = { name: 'verified', job: event.job, since, bootId: now.bootId } as const
      return to({ ...body, state: next })
    }
    case 'disarmed': {
      if (state.name !== 'armed') return same
      const outcome = { at: since, what: 'install', ok: false, code: 'AGENT_CANCELLED', message: 'taken back' }
      return to(addOutcome({ ...body, state: { name: 'idle' } }, { ...outcome, ...nameOf(state.job) }))
    }
    case 'progress':
      return state.name === 'downloading' ? { ...same, deadline: deadlineOf(body, now.mono, limits) } : same
    case 'checked':
      // A reboot that was asked for keeps its own, shorter deadline; so does what is under way.
      return machine.rebooting === true || !isResting(body)
        ? same
        : { ...same, deadline: deadlineOf(body, now.mono, limits) }
    case 'prepared': {
      if (state.name !== 'downloading') return same
      const filled = withSlot(body, state.job.slot, factsOf(state.job, false))
      const message = `slot ${state.job.slot} holds ${formatNumber(state.job.number)}, verified; ${event.why}`
      const { fetched, size } = event
      const outcome = { at: since, what: 'install', ok: true, message, ...nameOf(state.job), fetched, size }
      return to(addOutcome({ ...filled, state: { name: 'idle' } }, outcome))
    }
    case 'filling':
      return state.name === 'downloading'
        ? { ...same, body: withSlot(body, state.job.slot, undefined), deadline: deadlineOf(body, now.mono, limits) }
        : same
    case 'verified': {
      if (state.name !== 'downloading') return same
      const filled = withSlot(body, state.job.slot, factsOf(state.job, false))
      const next = { name: 'verified', job: state.job, since, bootId: now.bootId } as const
      return to({ ...filled, state: next })
    }
    case 'armed': {
      if (state.name !== 'verified') return same
      const armed = { name: 'armed', job: state.job, since, bootId: now.bootId } as const
      const message = `slot ${state.job.slot} is armed, ${formatNumber(state.job.number)} is tried at the next boot`
      const { fetched, size } = event
      const bytes = fetched === undefined || size === undefined ? {} : { fetched, size }
      const outcome = { at: since, what: 'install', ok: true, message, ...nameOf(state.job), ...bytes }
      return to(addOutcome({ ...body, state: armed }, outcome))
    }
    case 'failed':
      return state.name === 'downloading' || state.name === 'verified'
        ? endWork(body, state.job, event.failure, event.lasting, now, limits)
        : same
    case 'healthy':
      return state.name === 'trying' && state.failed === undefined
        ? { ...same, effects: [{ do: 'write-boot', change: 'commit' }] }
        : same
    case 'boot-committed': {
      if (state.name !== 'trying') return same
      const next = recordCommit(body, state.job, event.securityFloor, since)
      const line = `bistable: committed slot=${state.job.slot} release=${formatNumber(state.job.number)}`
      return to(next, { lines: [line], effects: retireEffects(next, otherSlot(state.job.slot)) })
    }
    case 'unhealthy':
      return state.name === 'trying' && state.failed === undefined
        ? refuse(machine, state.job, event.failure, now, limits)
        : same
    case 'reboot-asked':
      return { ...same, effects: [{ do: 'reboot' }], deadline: now.mono + limits.reboot, rebooting: true }
    case 'tick':
      return now.mono < deadline ? same : overdue(machine, now, limits)
  }
}

/** Every state without progress ends with a reason. */
function overdue(machine: Machine, now: Now, limits: Limits): Step {
  const { body } = machine
  const { state } = body
  if (machine.rebooting === true) return rebootFailed(machine, now, limits)
  switch (state.name) {
    case 'downloading':
    case 'verified': {
      const failure = { code: 'AGENT_STALLED', message: `no progress in state ${state.name}` }
      const step = endWork(body, state.job, failure, false, now, limits)
      return { ...step, effects: [{ do: 'stop-work', failure }] }
    }
    case 'trying': {
      const message = `not committed within ${Math.round(limits.tryFor / 1000)} s`
      return refuse(machine, state.job, { code: 'HEALTH_FAILED', message }, now, limits)
    }
    default:
      // Nothing is under way, and the check that was due has not ended: it is asked for again.
      return { ...machine, deadline: deadlineOf(body, now.mono, limits), effects: [{ do: 'wake' }], lines: [] }
  }
}

const isResting = ({ state }: RecordBody) => !['downloading', 'verified', 'trying'].includes(state.name)

function rebootFailed(machine: Machine, now: Now, limits: Limits): Step {
  const failure = { code: 'REBOOT_FAILED', message: `still running ${Math.round(limits.reboot / 1000)} s after asking` }
  const told = machine.body.outcomes.at(-1)?.code === failure.code
  const { state } = machine.body
  // The way back must not depend on the system that failed: its init may be what is broken. Anything else can wait for a person.
  const forced = told && state.name === 'trying' && state.failed !== undefined
  return {
    // Said once; asked again and again, because nothing else can move this state on.
    body: told ? machine.body : addOutcome(machine.body, { at: now.wall, what: 'agent', ok: false, ...failure }),
    deadline: now.mono + limits.reboot,
    rebooting: true,
    effects: [forced ? { do: 'reboot', forced: true } : { do: 'reboot' }],
    lines: told ? [] : [`bistable: ${failure.code}: ${failure.message}`],
  }
}

function endWork(body: RecordBody, job: Job, failure: Failure, lasting: boolean, now: Now, limits: Limits): Step {
  const kept = lasting ? block(body, job, `${failure.code}: ${failure.message}`, now.wall) : body
  const outcome = { at: now.wall, what: 'install', ok: false, ...failure, ...nameOf(job) }
  const next: RecordBody = addOutcome({ ...kept, state: { name: 'idle' } }, outcome)
  return {
    body: next,
    deadline: deadlineOf(next, now.mono, limits),
    effects: [],
    lines: [`bistable: install failed release=${formatNumber(job.number)} reason=${failure.code}`],
  }
}

/**
 * The floors are recorded by now, so the initramfs refuses an older spare; the boot state must not offer it any more.
 * Recorded first: a cut in between leaves a spare that is offered and refused, and the next start mends that.
 */
export function retireEffects(body: RecordBody, spare: Slot, known?: SlotFacts): readonly Effect[] {
  const facts = body.slots[spare] ?? known
  if (facts === undefined || compareNumbers(facts.number, body.securityFloor) >= 0) return []
  return [{ do: 'write-boot', change: 'retire' }]
}

/** The verdict is recorded before the trial is refused: a cut in between is finished at the next start. */
export function refuse(machine: Machine, job: Job, failure: Failure, now: Now, limits: Limits): Step {
  const line = `bistable: refused slot=${job.slot} release=${formatNumber(job.number)} reason=${failure.code}`
  // As much as a record holds: a verdict names every check that failed, and each says what it likes.
  const failed = { code: clip(failure.code), message: clip(failure.message) }
  return {
    body: { ...machine.body, state: { name: 'trying', job, since: now.wall, failed } },
    deadline: now.mono + limits.reboot,
    rebooting: true,
    effects: [{ do: 'write-boot', change: 'refuse' }, { do: 'reboot' }],
    lines: [`${line} ${failed.message}`],
  }
}

const nameOf = (job: Job) => ({ release: job.number, digest: job.digest })

export function stateLine(body: RecordBody): string {
  const { state } = body
  if (state.name === 'idle') return 'bistable: state=idle'
  return `bistable: state=${state.name} slot=${state.job.slot} release=${formatNumber(state.job.number)}`
}
