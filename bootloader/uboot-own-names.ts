import { checkState, MAX_GENERATION } from './machine.ts'
import { type BootState, DEFAULT_TRIES, MAX_TRIES, otherSlot, type Slot } from './state.ts'

/**
 * The boot state as variables that scripts of boards read which were brought up for another updater.
 *
 * RAUC's: BOOT_ORDER and BOOT_x_LEFT. The script boots the first slot of BOOT_ORDER that has tries left and takes one
 * away, of a committed slot too.
 *
 * SWUpdate's, with U-Boot's boot counter (doc/api/bootcount.rst): one variable of the board's names the slot. While
 * `upgrade_available` is 1, U-Boot adds one to `bootcount` at each start and runs `altbootcmd` when it exceeds
 * `bootlimit`. `ustate` says how it went: 0 well, 1 installed, 2 on trial, 3 failed.
 *
 * BISTABLE_PRIMARY, BISTABLE_GENERATION and, for SWUpdate's, BISTABLE_SPARE keep what these names cannot say.
 */

type Variables = ReadonlyMap<string, string>

export interface OwnNames extends Readonly<Record<Slot, string>> {
  /** SWUpdate's names: the variable that holds which slot boots; `a` and `b` are its values. Without it RAUC's. */
  readonly slotVariable?: string
}

/**
 * The state in a board's variables; undefined when they name none of the two slots.
 * @param counted U-Boot's count, where it is not in the variable `bootcount`
 */
export function ownState(variables: Variables, names: OwnNames, counted?: number): BootState | undefined {
  return names.slotVariable === undefined ? raucState(variables, names) : swupdateState(variables, names, counted)
}

/** Whether U-Boot's count says anything: a trial of SWUpdate's names is under way. */
export const isCounted = (variables: Variables): boolean => Number(variables.get('upgrade_available') ?? 0) > 0

/**
 * The board's variables with `state` put in; everything else stays.
 * @param counts U-Boot counts elsewhere than in `bootcount`, and every start: without a limit it does no harm
 */
export function withState(variables: Variables, state: BootState, names: OwnNames, counts = false): Variables {
  const { generation, primary } = checkState(state)
  return new Map([
    ...variables,
    ...(names.slotVariable === undefined ? raucVariables(state, names) : swupdateVariables(state, names, counts)),
    ['BISTABLE_PRIMARY', names[primary]],
    ['BISTABLE_GENERATION', String(generation)],
  ])
}

/** The variable, and its value, that gives a committed slot all its tries again. */
export function fullTries(slot: Slot, names: OwnNames): readonly [string, string] {
  return names.slotVariable === undefined ? [`BOOT_${names[slot]}_LEFT`, full] : ['bootcount', '0']
}

const full = DEFAULT_TRIES.toString(16)

const slotOf = (word: string | undefined, names: OwnNames): Slot | undefined =>
  word === names.a ? 'a' : word === names.b ? 'b' : undefined

function generationOf(variables: Variables): number {
  const digits = variables.get('BISTABLE_GENERATION') ?? ''
  return /^\d{1,10}$/.test(digits) ? Math.min(Number(digits), MAX_GENERATION - 1) : 0
}

function raucState(variables: Variables, names: OwnNames): BootState | undefined {
  const order = (variables.get('BOOT_ORDER') ?? '').split(/\s+/).map((word) => slotOf(word, names))
  const first = order.find((slot) => slot !== undefined)
  if (first === undefined) return undefined
  const left = (slot: Slot): number => {
    const text = variables.get(`BOOT_${names[slot]}_LEFT`) ?? ''
    // Written with %x.
    return /^(?:0x)?[0-9a-f]{1,2}$/i.test(text) ? Math.min(MAX_TRIES, Number.parseInt(text, 16)) : 0
  }
  const generation = generationOf(variables)
  // A board that another updater brought up has no such note: what it boots first was committed.
  const primary = slotOf(variables.get('BISTABLE_PRIMARY'), names) ?? first
  if (first !== primary) return { generation, primary, trial: first, left: left(first), spare: false }
  const other = otherSlot(primary)
  return { generation, primary, trial: undefined, left: 0, spare: order.includes(other) && left(other) > 0 }
}

function raucVariables(state: BootState, names: OwnNames): readonly (readonly [string, string])[] {
  const { primary, trial, left, spare } = state
  const other = otherSlot(primary)
  const order = trial !== undefined ? [trial, primary] : spare ? [primary, other] : [primary]
  const otherLeft = trial !== undefined ? left : spare ? DEFAULT_TRIES : 0
  return [
    ['BOOT_ORDER', order.map((slot) => names[slot]).join(' ')],
    [`BOOT_${names[primary]}_LEFT`, full],
    [`BOOT_${names[other]}_LEFT`, otherLeft.toString(16)],
  ]
}

function swupdateState(variables: Variables, names: OwnNames, counted?: number): BootState | undefined {
  const first = slotOf(variables.get(names.slotVariable ?? ''), names)
  if (first === undefined) return undefined
  const generation = generationOf(variables)
  const noted = slotOf(variables.get('BISTABLE_PRIMARY'), names)
  // U-Boot reads these with base 10.
  const number = (name: string): number | undefined => {
    const text = variables.get(name) ?? ''
    return /^\d{1,9}$/.test(text) ? Number(text) : undefined
  }
  const committed = (spare: boolean): BootState => ({ generation, primary: first, trial: undefined, left: 0, spare })
  if ((number('upgrade_available') ?? 0) > 0) {
    const primary = noted ?? otherSlot(first)
    if (first === primary) return committed(variables.get('BISTABLE_SPARE') === '1')
    // Without a limit U-Boot never gives up; nothing here arms so.
    const left = (number('bootlimit') ?? Number.POSITIVE_INFINITY) - (counted ?? number('bootcount') ?? 0)
    return { generation, primary, trial: first, left: Math.max(0, Math.min(MAX_TRIES, left)), spare: false }
  }
  // What boots for good is the primary, whatever the note says: another updater may have committed it. Failed: the board's
  // script came back to it, or the agent gave the other slot up.
  if (number('ustate') === USTATE.failed)
    return { generation, primary: first, trial: otherSlot(first), left: 0, spare: false }
  return committed(noted === first && variables.get('BISTABLE_SPARE') === '1')
}

const USTATE = { ok: 0, installed: 1, failed: 3 } as const

function swupdateVariables(state: BootState, names: OwnNames, counts: boolean): readonly (readonly [string, string])[] {
  const { primary, trial, left, spare } = state
  const trying = trial !== undefined && left > 0
  const ustate = trying ? USTATE.installed : trial === undefined ? USTATE.ok : USTATE.failed
  return [
    [names.slotVariable ?? '', names[trying ? trial : primary]],
    ['upgrade_available', trying ? '1' : '0'],
    ['bootcount', '0'],
    // The count includes the start that it is written in: so many starts, and the next one is given up.
    ...(trying || counts ? [['bootlimit', String(trying ? left : 0)] as const] : []),
    ['ustate', String(ustate)],
    ['BISTABLE_SPARE', spare ? '1' : '0'],
  ]
}
