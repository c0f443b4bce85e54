import { otherSlot } from '../../bootloader/state.ts'
import { compareNumbers } from '../../bundle/fields.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import type { Root } from '../../keys/types.ts'
import { deviceErrors } from '../errors.ts'
import {
  clip,
  type Failure,
  type Job,
  MAX_BLOCKED,
  MAX_OUTCOMES,
  newest,
  type Outcome,
  type RecordBody,
  type SlotFacts,
} from '../records/record.ts'

/** Pure changes of the record body, shared by the state machine and the boot reconciliation. */

export function addOutcome(body: RecordBody, outcome: Outcome): RecordBody {
  return { ...body, outcomes: [...body.outcomes, { ...outcome, message: clip(outcome.message) }].slice(-MAX_OUTCOMES) }
}

/** Puts a release on the block list; a second failure renews the entry. The oldest entries go when it is full. */
export function block(body: RecordBody, job: Pick<Job, 'digest' | 'number'>, reason: string, at: string): RecordBody {
  const others = body.blocked.filter((entry) => entry.digest !== job.digest)
  const entry = { digest: job.digest, number: job.number, reason: clip(reason), at }
  return { ...body, blocked: [...others, entry].slice(-MAX_BLOCKED) }
}

/**
 * What the fleet role said, forgotten: all its keys were replaced, so nothing it signed before can be offered again, and
 * a stolen key that signed the highest sequence and a time far ahead is out of the way. Floors are not the fleet's.
 */
export function forgetFleet(body: RecordBody, root: Root): RecordBody {
  const { freshness: _, assignment: __, ...kept } = body
  return { ...kept, verifiedTime: root.issued }
}

export function factsOf(job: Job, committed: boolean): SlotFacts {
  return { digest: job.digest, number: job.number, version: job.version, committed }
}

export function withSlot(body: RecordBody, slot: 'a' | 'b', facts: SlotFacts | undefined): RecordBody {
  const { [slot]: _, ...others } = body.slots
  return { ...body, slots: facts === undefined ? others : { ...others, [slot]: facts } }
}

/** Whether a slot holds what was once committed here and is not below the security floor. */
export function mayBoot({ slots, securityFloor }: RecordBody, slot: 'a' | 'b'): boolean {
  const facts = slots[slot]
  return facts?.committed === true && compareNumbers(facts.number, securityFloor) >= 0
}

/** The record of a commit: floors rise here and nowhere else, and only after the boot state was written. */
export function recordCommit(body: RecordBody, job: Job, securityFloor: ReleaseNumber, at: string): RecordBody {
  const next: RecordBody = {
    ...withSlot(body, job.slot, factsOf(job, true)),
    state: { name: 'committed', job, since: at },
    // A rollback goes below the install floor on purpose and does not lower it.
    installFloor: newest(body.installFloor, job.number),
    securityFloor: newest(body.securityFloor, securityFloor),
    // Healthy now: a forced second attempt that succeeds takes the release off the block list.
    blocked: body.blocked.filter((entry) => entry.digest !== job.digest),
  }
  const left = body.slots[otherSlot(job.slot)]
  // Left on purpose: a policy must not bring it back by itself.
  const kept = job.kind === 'rollback' && left !== undefined ? block(next, left, 'rolled back', at) : next
  return addOutcome(kept, {
    at,
    what: job.kind === 'rollback' ? 'rollback' : 'commit',
    ok: true,
    message: `slot ${job.slot} is committed`,
    release: job.number,
    digest: job.digest,
  })
}

/** The record of a fall-back: the release is blocked by its digest and the reason kept. */
export function recordFallBack(body: RecordBody, job: Job, failed: Failure, at: string): RecordBody {
  const failure = { code: clip(failed.code), message: clip(failed.message) }
  const blocked = block(body, job, `${failure.code}: ${failure.message}`, at)
  return addOutcome(
    { ...blocked, state: { name: 'fallen-back', job, since: at, failed: failure } },
    { at, what: 'fall-back', ok: false, ...failure, release: job.number, digest: job.digest },
  )
}

/** The commit of what is armed waits for a person. @throws AGENT_STATE when nothing is armed */
export function holdArmed(body: RecordBody): RecordBody {
  const { state } = body
  if (state.name !== 'armed') throw deviceErrors.AGENT_STATE(`the state is ${state.name}: there is no commit to hold`)
  return { ...body, state: { ...state, job: { ...state.job, hold: true } } }
}
