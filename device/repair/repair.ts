import type { BootRepairer, BootStateSurvey } from '../../bootloader/repair.ts'
import { type BootState, SLOTS, type Slot } from '../../bootloader/state.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { addOutcome, withSlot } from '../agent/body.ts'
import { type Core, failureFrom } from '../agent/core.ts'
import type { RecordBody, SlotFacts } from '../records/record.ts'
import { type Evidence, planRepair, type Restored } from './plan.ts'

/** `bistable repair`: makes the boot state whole again, and the record of what the slots hold. */

export interface RepairDone {
  /** Each part of the boot state partition as it was found. */
  readonly found: readonly { readonly name: string; readonly ok: boolean; readonly detail: string }[]
  /** What is written on the data partition about each slot, and whether the slot's content proves it. */
  readonly slots: readonly { readonly slot: Slot; readonly known: string; readonly detail: string }[]
  readonly did: readonly string[]
  /** The boot state afterwards, and where it is known from. */
  readonly state: BootState
  readonly because: string
  readonly message: string
}

/** @param told `--slot`: a person says which slot is primary; only used when no copy of the boot state is good */
export async function repairNow(core: Core, told: Slot | undefined, signal: AbortSignal): Promise<RepairDone> {
  const repairer = await core.ports.boot.repairer()
  try {
    return await repairWith(core, repairer, told, signal)
  } finally {
    await repairer.close()
  }
}

async function repairWith(
  core: Core,
  repairer: BootRepairer,
  told: Slot | undefined,
  signal: AbortSignal,
): Promise<RepairDone> {
  const survey = await repairer.survey()
  const { slots, proved } = await lookAtSlots(core, signal)
  const { line, body, ports } = core
  const evidence = { state: survey.state, body, running: line, bootId: ports.bootId, proved, told }
  const { state, because } = planOrSay(core, survey, { ...evidence, lastCommitted: await ports.note?.read() })
  const did: string[] = []
  const whole = survey.parts.every((part) => part.ok)
  if (!whole) did.push(...(await repairer.restore(state, line.slot)))
  const learnt = recordFacts(body, proved)
  if (learnt !== body) did.push('recorded what the slots hold')
  // With the boot state readable again, whatever happened since the last record is found out as at any start.
  await core.reconcile()
  const stands = whole ? (survey.state ?? state) : state
  const message =
    did.length === 0 ? 'nothing was damaged' : `repaired: ${did.join(', ')}; slot ${stands.primary} is primary`
  await record(core, learnt, did.length > 0, message)
  return { found: survey.parts, slots, did, state: stands, because, message }
}

/** What was found is of use to whoever has to decide, most of all when this refuses to. */
function planOrSay(core: Core, survey: BootStateSurvey, evidence: Evidence): Restored {
  try {
    return planRepair(evidence)
  } catch (error) {
    for (const { name, ok, detail } of survey.parts)
      if (!ok) core.ports.say(`bistable: found ${name} damaged: ${detail}`)
    throw error
  }
}

/** A slot that the record does not know, but whose kept statement its content proves, byte for byte from the medium. */
async function lookAtSlots(core: Core, signal: AbortSignal) {
  const slots: { slot: Slot; known: string; detail: string }[] = []
  const proved: Partial<Record<Slot, SlotFacts>> = {}
  for (const slot of SLOTS) {
    const recorded = core.body.slots[slot]
    if (recorded !== undefined) {
      slots.push({ slot, known: formatNumber(recorded.number), detail: 'recorded' })
      continue
    }
    const stored = await core.ports.engine.storedRelease(slot)
    if (stored === undefined) {
      slots.push({ slot, known: 'nothing', detail: 'no statement is kept; install its release again to know it' })
      continue
    }
    const fault = await faultOf(core, slot, stored.statement, signal)
    const known = formatNumber(stored.facts.number)
    slots.push({ slot, known, detail: fault === undefined ? 'proved by its content' : `not proved: ${fault}` })
    if (fault === undefined) proved[slot] = stored.facts
  }
  return { slots, proved }
}

/** A slot that cannot be read is as unproved as one that differs. */
async function faultOf(core: Core, slot: Slot, ...rest: FaultArgs): Promise<string | undefined> {
  try {
    return await core.ports.engine.slotFault(slot, ...rest)
  } catch (error) {
    rest[1].throwIfAborted()
    return failureFrom(error).message
  }
}
type FaultArgs = [Parameters<Core['ports']['engine']['slotFault']>[1], AbortSignal]

function recordFacts(body: RecordBody, proved: Readonly<Partial<Record<Slot, SlotFacts>>>): RecordBody {
  return SLOTS.reduce((next, slot) => {
    const facts = proved[slot]
    // Proved to be there is not proved to have run: `committed` stays false.
    return facts === undefined ? next : withSlot(next, slot, facts)
  }, body)
}

async function record(core: Core, body: RecordBody, changed: boolean, message: string): Promise<void> {
  if (!changed) return
  const at = core.now().wall
  try {
    await core.update(() => addOutcome(body, { at, what: 'repair', ok: true, message }))
  } catch (error) {
    core.ports.say(`bistable: the record cannot be written: ${failureFrom(error).message}`)
  }
}

export function repairText(done: RepairDone): string {
  const { state } = done
  const rest = [
    ...(state.trial === undefined ? [] : [`slot ${state.trial} on trial, ${state.left} tries left`]),
    ...(state.spare ? ['the other slot can be returned to'] : []),
  ]
  return [
    ...done.found.map(({ name, ok, detail }) => `${name.padEnd(12)} ${ok ? 'ok     ' : 'DAMAGED'}  ${detail}`),
    ...done.slots.map(({ slot, known, detail }) => `slot ${slot}       ${known}  ${detail}`),
    ...done.did.map((what) => `did: ${what}`),
    `boot state: ${[`slot ${state.primary} primary`, ...rest].join(', ')} (${done.because})`,
    done.message,
  ].join('\n')
}
