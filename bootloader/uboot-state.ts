import { checkState, MAX_GENERATION } from './machine.ts'
import { type BootState, DEFAULT_TRIES, type Slot } from './state.ts'

/**
 * The boot state as variables of a U-Boot environment, under the names that boards with RAUC use.
 *
 * BOOT_ORDER lists the slots to boot, first one first; the slot on trial stands in front of the primary. BISTABLE_PRIMARY
 * says which slot was committed last: in BOOT_ORDER alone a trial and a primary with a spare look alike.
 */

/** In the order in which U-Boot itself writes them, so that its bytes and ours are the same. */
export const STATE_VARIABLES = [
  'BISTABLE_GENERATION',
  'BISTABLE_PRIMARY',
  'BOOT_A_LEFT',
  'BOOT_B_LEFT',
  'BOOT_ORDER',
] as const
type StateVariable = (typeof STATE_VARIABLES)[number]

const name = (slot: Slot): string => slot.toUpperCase()

export function stateVariables(state: BootState): ReadonlyMap<StateVariable, string> {
  const { generation, primary, trial, left, spare } = checkState(state)
  const other = primary === 'a' ? 'b' : 'a'
  const order: readonly Slot[] = trial !== undefined ? [trial, primary] : spare ? [primary, other] : [primary]
  const tries = (slot: Slot): string => {
    if (slot === trial) return left.toString(16)
    return slot === primary || spare ? DEFAULT_TRIES.toString(16) : '0'
  }
  return new Map<StateVariable, string>([
    ['BISTABLE_GENERATION', String(generation).padStart(10, '0')],
    ['BISTABLE_PRIMARY', name(primary)],
    ['BOOT_A_LEFT', tries('a')],
    ['BOOT_B_LEFT', tries('b')],
    ['BOOT_ORDER', order.map((slot) => name(slot)).join(' ')],
  ])
}

const slotOf = (text: string | undefined): Slot | undefined => (text === 'A' ? 'a' : text === 'B' ? 'b' : undefined)

/** Reads what `stateVariables` or `boot.cmd` wrote; undefined when `boot.cmd` would not take it for a state either. */
export function stateFrom(variables: ReadonlyMap<string, string>): BootState | undefined {
  const primary = slotOf(variables.get('BISTABLE_PRIMARY'))
  const order = variables.get('BOOT_ORDER') ?? ''
  if (primary === undefined || !/^(?:A|B|A B|B A)$/.test(order)) return undefined
  // A generation that a person has spoilt costs nothing: which copy counts is said by the flags.
  const digits = variables.get('BISTABLE_GENERATION') ?? ''
  const generation = /^\d{1,10}$/.test(digits) ? Math.min(Number(digits), MAX_GENERATION - 1) : 0
  const first = order.startsWith('A') ? 'a' : 'b'
  if (first === primary) return { generation, primary, trial: undefined, left: 0, spare: order.length > 1 }
  const left = variables.get(`BOOT_${name(first)}_LEFT`) ?? ''
  if (!/^\d$/.test(left)) return undefined
  return { generation, primary, trial: first, left: Number(left), spare: false }
}
