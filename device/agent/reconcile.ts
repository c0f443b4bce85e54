import type { BootReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import type { Failure, Job, RecordBody, SlotFacts } from '../records/record.ts'
import { addOutcome, recordCommit, recordFallBack, withSlot } from './body.ts'
import type { BootLine } from './cmdline.ts'
import { type Effect, type Now, refuse, retireEffects, type Step, stateLine } from './machine.ts'
import { deadlineOf, type Limits } from './states.ts'

/**
 * What happened since the agent last wrote its record: compared are the record, the boot state, this boot's kernel
 * command line and the reason that an initramfs may have left. Pure, and idempotent: run again after a cut at any
 * point, it ends in the same record.
 */

export interface BootFacts {
  readonly body: RecordBody
  /** Undefined when neither copy is valid, or when the partition could not be read: then `bootProblem` says why. */
  readonly boot: BootState | undefined
  readonly bootProblem: Failure | undefined
  /** One copy of the boot state is damaged, the other counts. */
  readonly torn: boolean
  readonly line: BootLine
  /** From reason.env: the last boot that the initramfs gave up. */
  readonly reason: BootReason['failure']
  /** What the data partition says is in each slot, where the record does not know. */
  readonly onDisk: Readonly<Partial<Record<Slot, SlotFacts>>>
}

/** Why the bootloader did not boot what was asked, as codes of the catalogue. */
const WHY: Readonly<Record<string, readonly [code: string, message: string]>> = {
  'tries-spent': ['TRY_TRIES_SPENT', 'every try ended before the release was committed'],
  'counter-unwritable': ['TRY_COUNTER_UNWRITABLE', 'the bootloader could not count the try down, so it did not try'],
  'state-unreadable': ['TRY_STATE_UNREADABLE', 'the bootloader could not read the boot state'],
  'primary-broken': ['TRY_PRIMARY_BROKEN', 'the primary slot was started again and again and did not come up'],
  'image-unreadable': ['TRY_IMAGE_UNREADABLE', 'the bootloader could not load the kernel of the slot it wanted'],
}

/** An agent that is started anew judges a try from the beginning; so many deadlines in all may one boot of it take. */
const MOST_DEADLINES = 3

/** What was found out; its deadline is that of the state it ends in, unless said otherwise. */
type Found = Omit<Step, 'deadline'> & { readonly deadline?: number }

export function reconcile(facts: BootFacts, now: Now, limits: Limits): Step {
  const step = findOut({ ...facts, body: learnRunning(facts) }, now, limits)
  const effects = [...step.effects, ...mend(step, facts)]
  // The record holds by now whatever the initramfs left: the bootloader may forget it.
  return { deadline: deadlineOf(step.body, now.mono, limits), ...step, effects: [{ do: 'came-up' }, ...effects] }
}

/** What is wrong with the boot state itself: a spare that the floor has passed, a torn copy. Any write heals the copy. */
function mend(step: Found, { boot, line, onDisk, torn }: BootFacts): readonly Effect[] {
  if (boot === undefined || step.effects.some((effect) => effect.do === 'write-boot')) return []
  const spare = otherSlot(boot.primary)
  const retired = boot.spare && boot.primary === line.slot ? retireEffects(step.body, spare, onDisk[spare]) : []
  return retired.length === 0 && torn ? [{ do: 'write-boot', change: 'renew' }] : retired
}

function findOut(facts: BootFacts, now: Now, limits: Limits): Found {
  const { body, boot, line } = facts
  if (boot === undefined) return bootStateLost(facts, now, limits)
  if (boot.trial === line.slot && (line.boot === 'try' || boot.left > 0)) return trying(body, facts, now, limits)
  if (boot.trial !== undefined && boot.trial !== line.slot) return otherOnTrial(body, boot, boot.trial, facts, now)
  const pending = jobOf(body)
  if (boot.trial === undefined && boot.primary === line.slot && pending?.slot === line.slot && isUnfinished(body)) {
    // Cut between the boot-state write of a commit and its record.
    const next = recordCommit(body, pending, line.floor, now.wall)
    const said = `bistable: committed slot=${line.slot} release=${formatNumber(pending.number)}`
    return { body: next, effects: [], lines: [said] }
  }
  const step = steady(body, facts, now)
  // A boot that found no state at all says nothing about the primary that the state names by now.
  const gaveWay = line.boot === 'fallback' && line.why !== 'state-unreadable'
  const onSpare = boot.spare && boot.primary === otherSlot(line.slot) && gaveWay
  return onSpare ? { ...step, effects: [{ do: 'write-boot', change: 'adopt' }] } : step
}

/** No boot state can be read. What runs is what there is; a new state is written when that cannot strand the device. */
function bootStateLost(facts: BootFacts, now: Now, limits: Limits): Found {
  const { body, line, bootProblem } = facts
  const failure = bootProblem ?? { code: 'TRY_STATE_UNREADABLE', message: 'both copies of the boot state are damaged' }
  const seen = body.outcomes.at(-1)?.code === failure.code
  const noted = seen ? body : addOutcome(body, { at: now.wall, what: 'boot', ok: false, ...failure })
  if (line.boot === 'try' || (jobOf(body)?.slot === line.slot && isUnfinished(body))) {
    return trying(noted, facts, now, limits)
  }
  const step = steady(noted, facts, now)
  return bootProblem === undefined ? { ...step, effects: [{ do: 'write-boot', change: 'fresh' }] } : step
}

/** The slot that runs is the one on trial. */
function trying(body: RecordBody, facts: BootFacts, now: Now, limits: Limits): Found {
  const { line } = facts
  const job = onTrial(line.slot, facts, now)
  if (job === undefined) {
    // Nobody knows what this is; it must not be committed without a name.
    const message = `slot ${line.slot} is on trial, but no release is recorded for it`
    const noted = addOutcome(body, { at: now.wall, what: 'boot', ok: false, code: 'VERIFY_NO_RELEASE', message })
    const effects: Effect[] = [{ do: 'write-boot', change: 'refuse' }, { do: 'reboot' }]
    return { body: noted, deadline: now.mono + limits.reboot, effects, lines: [`bistable: ${message}`] }
  }
  const machine = { body, deadline: now.mono }
  if (body.state.name === 'trying' && body.state.failed !== undefined) {
    return refuse(machine, job, body.state.failed, now, limits)
  }
  const known = body.state.name === 'trying' && body.state.job.digest === job.digest ? body.state.begun : undefined
  const begun = known?.bootId === now.bootId ? known : { bootId: now.bootId, mono: Math.round(now.mono) }
  const next: RecordBody = { ...body, state: { name: 'trying', job, since: now.wall, begun } }
  // Nothing else would end a try whose agent does not live until its deadline.
  const most = MOST_DEADLINES * deadlineOf(next, 0, limits)
  const last = begun.mono + most
  if (now.mono >= last) {
    const message = `the agent was started anew during the try, and nothing was committed within ${Math.round(most / 1000)} s`
    return refuse(machine, job, { code: 'HEALTH_FAILED', message }, now, limits)
  }
  const noted = facts.reason?.slot === line.slot ? noteReason(next, facts.reason, now) : next
  return {
    body: noted,
    deadline: Math.min(deadlineOf(noted, now.mono, limits), last),
    effects: [],
    lines: [`${stateLine(noted)} left=${line.left}`],
  }
}

/** A slot is on trial, and it is not the one that runs. */
function otherOnTrial(body: RecordBody, boot: BootState, trial: Slot, facts: BootFacts, now: Now): Found {
  const { line } = facts
  const { state } = body
  const here = (state.name === 'verified' || state.name === 'armed') && state.bootId === now.bootId
  const waits = boot.left > 0 && (here || line.boot !== 'fallback')
  const job = onTrial(trial, facts, now)
  if (waits) {
    if (job === undefined || state.name === 'armed') return stay(body, [])
    // Cut between the boot-state write and its record.
    const next: RecordBody = { ...body, state: { name: 'armed', job, since: now.wall, bootId: now.bootId } }
    return stay(next, [stateLine(next)])
  }
  // The bootloader must not try again what is recorded as failed.
  const effects: Effect[] = boot.left > 0 ? [{ do: 'write-boot', change: 'refuse' }] : []
  if (state.name === 'fallen-back' && state.job.slot === trial) {
    // Told when it happened; whoever watches this boot still hears that the agent is up.
    return { ...stay(body, [runningLine(facts)]), effects }
  }
  if (job === undefined) {
    const failure = failureOf(body, trial, facts)
    return {
      ...steady(addOutcome(body, { at: now.wall, what: 'fall-back', ok: false, ...failure }), facts, now),
      effects,
    }
  }
  return fellBack(body, job, facts, now, effects)
}

function fellBack(body: RecordBody, job: Job, facts: BootFacts, now: Now, effects: readonly Effect[]): Found {
  const failure = failureOf(body, job.slot, facts)
  const next = recordFallBack(body, job, failure, now.wall)
  const { slot, release } = facts.line
  const line = `bistable: fell back to slot=${slot} release=${formatNumber(release)} from=${formatNumber(job.number)}`
  return {
    body: next,
    effects,
    lines: [`${line} reason=${failure.code} ${failure.message}`],
  }
}

/** The agent's own verdict first, then the initramfs's word, then the bootloader's. */
function failureOf(body: RecordBody, slot: Slot, { line, reason }: BootFacts): Failure {
  if (body.state.name === 'trying' && body.state.job.slot === slot && body.state.failed !== undefined) {
    return body.state.failed
  }
  if (reason?.slot === slot) return { code: 'TRY_INITRAMFS', message: `${reason.stage}: ${reason.text}` }
  const [code, message] = WHY[line.why] ?? ['TRY_TRIES_SPENT', 'every try ended before the release was committed']
  return { code, message }
}

/** Nothing is on trial: an interrupted install ends, a stray reason is reported, everything else stays. */
function steady(body: RecordBody, facts: BootFacts, now: Now): Found {
  const { line, reason, boot } = facts
  let next = body
  if (body.state.name !== 'idle' && body.state.name !== 'committed' && body.state.name !== 'fallen-back') {
    const { job, name } = body.state
    const message = `interrupted in state ${name}; the system in slot ${line.slot} is untouched`
    const outcome = { at: now.wall, what: 'install', ok: false, code: 'AGENT_INTERRUPTED', message }
    next = addOutcome({ ...body, state: { name: 'idle' } }, { ...outcome, release: job.number, digest: job.digest })
  }
  if (reason !== undefined) next = noteReason(next, reason, now)
  const why = WHY[line.why]
  const last = next.outcomes.findLast((o) => o.what === 'boot')
  if (why !== undefined && boot?.trial === undefined && last?.code !== why[0]) {
    next = addOutcome(next, { at: now.wall, what: 'boot', ok: false, code: why[0], message: why[1] })
  }
  return { body: next, effects: [], lines: [runningLine(facts)] }
}

function runningLine({ line: { slot, release, boot, why } }: BootFacts): string {
  return `bistable: running slot=${slot} release=${formatNumber(release)} boot=${boot} why=${why}`
}

function noteReason(body: RecordBody, reason: NonNullable<BootFacts['reason']>, now: Now): RecordBody {
  const message = `slot ${reason.slot}: ${reason.stage}: ${reason.text}`
  const last = body.outcomes.at(-1)
  if (last?.code === 'TRY_INITRAMFS' && last.message === message) return body
  return addOutcome(body, { at: now.wall, what: 'boot', ok: false, code: 'TRY_INITRAMFS', message })
}

/** A committed release that runs is known, even on a device whose records were lost or are new. */
function learnRunning(facts: BootFacts): RecordBody {
  const { body, line, boot, onDisk } = facts
  const committed = boot !== undefined && boot.primary === line.slot && boot.trial !== line.slot
  const known = body.slots[line.slot]
  if (known !== undefined && compareNumbers(known.number, line.release) === 0) {
    return committed && !known.committed && !isUnfinished(body)
      ? withSlot(body, line.slot, { ...known, committed: true })
      : body
  }
  const found = onDisk[line.slot]
  if (found === undefined || compareNumbers(found.number, line.release) !== 0) return body
  return withSlot(body, line.slot, { ...found, committed })
}

/**
 * The job whose release is on trial in `slot`. A job that still downloads has armed nothing: the trial is what was armed
 * before it, and the slot still holds that, because its first write takes the trial back. What runs says its own number:
 * nothing else is committed in its name.
 */
function onTrial(slot: Slot, facts: BootFacts, now: Now): Job | undefined {
  const { body, line } = facts
  const known = body.state.name === 'downloading' ? undefined : jobOf(body)
  const jobs = [known?.slot === slot ? known : undefined, jobFromFacts(slot, facts, now)]
  return jobs.find((job) => job !== undefined && (slot !== line.slot || compareNumbers(job.number, line.release) === 0))
}

function jobFromFacts(slot: Slot, facts: BootFacts, now: Now): Job | undefined {
  const known = facts.body.slots[slot] ?? facts.onDisk[slot]
  if (known === undefined) return undefined
  const { digest, number, version } = known
  return { kind: 'update', slot, digest, number, version, source: 'unknown', forced: false, started: now.wall }
}

const stay = (body: RecordBody, lines: readonly string[]): Found => ({ body, effects: [], lines })

function jobOf(body: RecordBody): Job | undefined {
  return body.state.name === 'idle' ? undefined : body.state.job
}

/** States that a boot state without a trial can only mean the end of. */
function isUnfinished(body: RecordBody): boolean {
  return ['verified', 'armed', 'trying'].includes(body.state.name)
}

/** What the stored releases say of the slots, without the rest. */
export function factsOnly(stored: Record<'a' | 'b', { facts: NonNullable<RecordBody['slots']['a']> } | undefined>) {
  return {
    ...(stored.a === undefined ? {} : { a: stored.a.facts }),
    ...(stored.b === undefined ? {} : { b: stored.b.facts }),
  }
}
