import { freshState, renew } from '../../bootloader/machine.ts'
import { type BootState, DEFAULT_TRIES, otherSlot, type Slot } from '../../bootloader/state.ts'
import { compareNumbers } from '../../bundle/fields.ts'
import { deviceErrors } from '../errors.ts'
import type { RecordBody, SlotFacts } from '../records/record.ts'

/**
 * What the boot state must have said, from everything else the device knows. Pure. A witness is only believed for what
 * it saw; where none saw which slot was primary, this refuses, because a wrong guess may boot what was never committed.
 */

export interface Evidence {
  /** From a copy that can still be read. */
  readonly state: BootState | undefined
  readonly body: RecordBody
  /** Of this boot, from the kernel command line. */
  readonly running: { readonly slot: Slot; readonly boot: string; readonly left: number }
  readonly bootId: string
  /** The data partition's note of the slot committed last; undefined when there is none. */
  readonly lastCommitted: Slot | undefined
  /** A slot whose content could be proved against a signed statement. */
  readonly proved: Readonly<Partial<Record<Slot, SlotFacts>>>
  /** A person says which slot is primary. */
  readonly told: Slot | undefined
}

export interface Restored {
  readonly state: BootState
  /** Where it is known from, for people. */
  readonly because: string
}

/** Throws REPAIR_UNDECIDED when nobody knows which slot was primary, AGENT_STATE when `told` contradicts a good copy. */
export function planRepair(evidence: Evidence): Restored {
  const { state, told } = evidence
  if (state !== undefined) {
    if (told !== undefined && told !== state.primary)
      throw deviceErrors.AGENT_STATE(`a good copy of the boot state says that slot ${state.primary} is primary`, {
        next: `Run 'bistable repair' without --slot; to change slots use 'bistable rollback' or 'bistable install'.`,
      })
    return { state: renew(state), because: 'a copy of the boot state is good' }
  }
  const found = told === undefined ? witness(evidence) : { primary: told, because: 'a person said so' }
  return { state: around(found.primary, evidence), because: found.because }
}

function witness({ body, running, lastCommitted }: Evidence): { primary: Slot; because: string } {
  const recorded = body.state.name === 'committed' ? body.state.job.slot : undefined
  // The note is written after the record; where they differ, the one that runs decides, and only for the note.
  if (recorded !== undefined && lastCommitted !== undefined && recorded !== lastCommitted && running.slot === recorded)
    throw undecided(`the record says that slot ${recorded} was committed last, the note on /data says ${lastCommitted}`)
  if (lastCommitted !== undefined) return { primary: lastCommitted, because: 'the data partition has a note of it' }
  if (recorded !== undefined) return { primary: recorded, because: 'the record ends with its commit' }
  if (running.boot === 'committed') return { primary: running.slot, because: 'the bootloader started it as committed' }
  const here = body.slots[running.slot]
  const other = body.slots[otherSlot(running.slot)]
  if (here?.committed === true && other?.committed !== true)
    return { primary: running.slot, because: 'it is the only slot that was ever committed here' }
  throw undecided('neither a copy, nor the record, nor the bootloader knows')
}

function undecided(why: string): Error {
  return deviceErrors.REPAIR_UNDECIDED(`which slot is primary is not known: ${why}`)
}

/** The rest of the state around a primary: what is on trial, and whether the other slot may be returned to. */
function around(primary: Slot, { body, running, bootId, proved, told }: Evidence): BootState {
  const other = otherSlot(primary)
  const fresh = freshState(primary)
  const { state } = body
  if (running.boot === 'try' && running.slot === other && told === undefined)
    return { ...fresh, trial: other, left: running.left }
  // Armed in this very boot: no try was used.
  if (state.name === 'armed' && state.job.slot === other && state.bootId === bootId && told === undefined)
    return { ...fresh, trial: other, left: DEFAULT_TRIES }
  const facts = body.slots[other] ?? proved[other]
  const allowed = facts === undefined || compareNumbers(facts.number, body.securityFloor) >= 0
  const runsThere = running.slot === other && running.boot !== 'try'
  const spare = allowed && (runsThere || facts?.committed === true)
  return { ...fresh, spare }
}
