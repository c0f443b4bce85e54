import { arm, freshState, NO_STARTS, onBoot, type Starts } from '../../bootloader/machine.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { type BootState, otherSlot, SLOTS, type Slot } from '../../bootloader/state.ts'
import { decodeUbootCopy, encodeUbootCopy } from '../../bootloader/uboot.ts'
import { chooseEnv, encodeEnv, nextFlag } from '../../bootloader/uboot-env.ts'
import { stateVariables } from '../../bootloader/uboot-state.ts'
import type { UbootCase, UbootDecision } from './uboot-qemu.ts'

/** Disks that U-Boot and the pure machine are asked about, and the comparison of their answers. */

export interface NamedCase extends UbootCase {
  readonly name: string
  readonly starts: Starts
}

const GARBAGE = Uint8Array.from({ length: 512 }, (_, n) => (n * 37 + 11) % 256)
const ZEROS = new Uint8Array(512)

function named(
  name: string,
  copies: readonly [Uint8Array, Uint8Array],
  starts: Starts = NO_STARTS,
  lost: readonly Slot[] = [],
): NamedCase {
  const failure =
    starts.a > 0 ? ({ slot: 'a', stage: 'verity', text: 'it did not "open"; $(x) ${y}' } as const) : undefined
  return { name, copies, starts, lost, reason: encodeReason({ starts, failure }) }
}

export function allStates(generation: number): BootState[] {
  const states: BootState[] = []
  for (const primary of SLOTS) {
    for (const spare of [false, true]) states.push({ generation, primary, trial: undefined, left: 0, spare })
    for (let left = 0; left <= 9; left++)
      states.push({ generation, primary, trial: otherSlot(primary), left, spare: false })
  }
  return states
}

/** What may stand in a copy that is not a state: each must be passed over. */
export function notStates(): readonly (readonly [string, Uint8Array])[] {
  const torn = Uint8Array.from(encodeUbootCopy({ ...freshState('b'), generation: 42 }, 9))
  torn.set(encodeUbootCopy(freshState('a'), 8).subarray(30), 30)
  const odd = (name: string, change: Record<string, string | undefined>): readonly [string, Uint8Array] => {
    const variables = new Map<string, string>(stateVariables(arm(freshState('a'), 'b')))
    for (const [key, value] of Object.entries(change))
      if (value === undefined) variables.delete(key)
      else variables.set(key, value)
    return [name, encodeEnv({ variables, flag: 200 }, 512)]
  }
  return [
    ['torn', torn],
    ['garbage', GARBAGE],
    ['zeros', ZEROS],
    ['erased', new Uint8Array(512).fill(0xff)],
    odd('no order', { BOOT_ORDER: undefined }),
    odd('an order of strangers', { BOOT_ORDER: 'system0 system1' }),
    odd('an order with a command', { BOOT_ORDER: 'A; reset' }),
    odd('no primary', { BISTABLE_PRIMARY: undefined }),
    odd('a strange primary', { BISTABLE_PRIMARY: 'a' }),
    odd('no tries', { BOOT_B_LEFT: undefined }),
    odd('too many tries', { BOOT_B_LEFT: '10' }),
    odd('tries of letters', { BOOT_B_LEFT: 'f' }),
    odd('tries with a command', { BOOT_B_LEFT: '3; reset' }),
  ]
}

export function stateCases(): NamedCase[] {
  const older = encodeUbootCopy({ generation: 40, primary: 'b', trial: undefined, left: 0, spare: true }, 6)
  return allStates(41).flatMap((state) => {
    const good = encodeUbootCopy(state, 7)
    return [['older', older] as const, ...notStates()].flatMap(([what, other]) => [
      named(`${JSON.stringify(state)} first, ${what}`, [good, other]),
      named(`${JSON.stringify(state)} second, ${what}`, [other, good]),
    ])
  })
}

/** Flags that meet in every order, around the wrap and around the sign bit. */
export function flagCases(flags: readonly number[]): NamedCase[] {
  const first = arm(freshState('a'), 'b', 5)
  const second = arm(freshState('b'), 'a', 8)
  return flags.flatMap((a) =>
    flags.map((b) => named(`flags ${a} and ${b}`, [encodeUbootCopy(first, a), encodeUbootCopy(second, b)])),
  )
}

/** The arming write torn behind every byte, over an old copy and over garbage. */
export function tornCases(step: number): NamedCase[] {
  const before = { ...freshState('a'), generation: 98 }
  const armed = encodeUbootCopy(arm(before, 'b'), 4)
  const cases: NamedCase[] = []
  for (let cut = 0; cut <= 512; cut += step)
    for (const fill of [encodeUbootCopy({ ...before, generation: 97 }, 2), GARBAGE]) {
      const torn = Uint8Array.from(fill)
      torn.set(armed.subarray(0, cut))
      cases.push(named(`cut at ${cut}`, [torn, encodeUbootCopy(before, 3)]))
    }
  return cases
}

export function startCases(): NamedCase[] {
  const older = encodeUbootCopy({ ...freshState('b'), generation: 4 }, 4)
  const cases: NamedCase[] = []
  for (const state of [...allStates(5).filter((s) => s.left <= 1), undefined])
    for (const a of [0, 5, 6, 9])
      for (const b of [0, 6])
        for (const up of ['a', 'b', undefined] as const) {
          if (state !== undefined && up !== 'a') continue
          const copies =
            state === undefined ? ([GARBAGE, ZEROS] as const) : ([encodeUbootCopy(state, 5), older] as const)
          cases.push(named(`${JSON.stringify(state)} starts ${a} ${b} up ${up}`, copies, { a, b, up }))
        }
  return cases
}

export function lostCases(): NamedCase[] {
  return [...allStates(5).filter((s) => s.left <= 1), undefined].flatMap((state) =>
    [['a'], ['b'], ['a', 'b']].map((lost) => {
      const copy = state === undefined ? GARBAGE : encodeUbootCopy(state, 5)
      return named(`${JSON.stringify(state)} lost ${lost}`, [copy, GARBAGE], NO_STARTS, lost as Slot[])
    }),
  )
}

/** No state at all, and a note of the slot committed last: believed before the slot that came up last. */
export function notedCases(): NamedCase[] {
  return (
    [
      { a: 0, b: 0, up: 'a' },
      { a: 1, b: 6, up: 'a' },
      { a: 6, b: 6, up: undefined },
    ] as const
  ).map((starts) => ({
    ...named(`noted b, starts ${JSON.stringify(starts)}`, [GARBAGE, ZEROS], starts),
    noted: 'b' as const,
  }))
}

/** Throws the first difference between U-Boot's answer and the machine's: decision, command line, and every byte written. */
export function compareUboot(each: NamedCase, got: UbootDecision, args: string, writable = true): void {
  const copies = [decodeUbootCopy(each.copies[0]), decodeUbootCopy(each.copies[1])] as const
  const source = chooseEnv([copies[0]?.env, copies[1]?.env])
  const counting = source === undefined ? undefined : copies[source]
  const loadable = { a: !each.lost.includes('a'), b: !each.lost.includes('b') }
  const wanted = onBoot(counting?.state, { starts: each.starts, writable, loadable, noted: each.noted })
  const after = [...each.copies] as [Uint8Array, Uint8Array]
  if (wanted.newState !== undefined && source !== undefined)
    after[source === 0 ? 1 : 0] = encodeUbootCopy(wanted.newState, nextFlag(counting?.env.flag ?? 0))
  const starts = { ...each.starts }
  if (wanted.slot !== undefined && writable) starts[wanted.slot] = Math.min(9, starts[wanted.slot] + 1)
  const { slot, boot, why, left } = wanted
  const fields = slot === undefined ? undefined : { slot, boot, left: String(left), why, release: '0.1' }
  const line =
    slot === undefined
      ? ''
      : `panic=5 ${args} bistable.slot=${slot} bistable.release=0.1 bistable.boot=${boot} bistable.left=${left} bistable.why=${why} bistable.loader=uboot`
  const facts = [
    ['decision', got.fields, fields],
    ['command line', got.args, line],
    ['pause', got.paused, wanted.pause],
    ['first copy', hex(got.after.copies[0]), hex(after[0])],
    ['second copy', hex(got.after.copies[1]), hex(after[1])],
    ['starts', decodeReason(whole(got.after.reason)), { ...decodeReason(each.reason), starts }],
  ] as const
  for (const [what, found, want] of facts)
    if (JSON.stringify(found) !== JSON.stringify(want))
      throw new Error(
        `${each.name}: ${what} is ${JSON.stringify(found)}, the machine says ${JSON.stringify(want)}\n${got.text}`,
      )
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(0, 512)).toString('hex')
/** The second half of a reason block is constant. */
const whole = (sector: Uint8Array): Uint8Array => Buffer.concat([sector, Buffer.alloc(512, '#')])
