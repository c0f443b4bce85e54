import { bootErrors } from './errors.ts'
import { type BootState, DEFAULT_TRIES, MAX_TRIES, otherSlot, type Slot } from './state.ts'

/**
 * The boot state as a pure machine: what the bootloader decides, and every move the agent may make.
 *
 * `grub.cfg` does what `onBoot` says; a test asks both about the same disks.
 */

/** Generations have ten decimal digits. */
export const MAX_GENERATION = 9_999_999_999

/**
 * From this many start points on, a slot counts as broken. Each start that no agent answers is one point, and a failure
 * that the initramfs recognised is one more: three recognised failures in a row, or six silent ones.
 */
export const BROKEN_AFTER = 6
export const MAX_STARTS = 9

/** How often each slot was started since the agent last came up in it, and where it came up last. Only a hint. */
export interface Starts {
  readonly a: number
  readonly b: number
  readonly up: Slot | undefined
}
export const NO_STARTS: Starts = { a: 0, b: 0, up: undefined }

export type BootKind = 'committed' | 'try' | 'fallback' | 'menu'
/** `bistable.why` on the kernel command line; docs/architecture.md lists what each means. */
export const BOOT_WHYS = [
  'ok',
  'counter-unwritable',
  'state-unreadable',
  'tries-spent',
  'primary-broken',
  'image-unreadable',
] as const
export type BootWhy = (typeof BOOT_WHYS)[number]

/** What the bootloader sees besides the boot state. */
export interface BootWorld {
  readonly starts: Starts
  /** Whether the copy that does not count can be written and reads back; GRUB cannot write to one without its header. */
  readonly writable: boolean
  /** Whether kernel and initramfs of this slot can be loaded. */
  readonly loadable: Readonly<Record<Slot, boolean>>
  /** The slot committed last, as the data partition notes it. Asked only when there is no state at all. */
  readonly noted?: Slot | undefined
}
export const GOOD_WORLD: BootWorld = { starts: NO_STARTS, writable: true, loadable: { a: true, b: true } }

export interface BootDecision {
  /** Undefined: no slot can be loaded; the bootloader waits and resets. */
  readonly slot: Slot | undefined
  readonly boot: BootKind
  readonly why: BootWhy
  /** Tries left after this boot, for the command line. */
  readonly left: number
  /** What the bootloader writes before it loads anything; undefined: nothing. */
  readonly newState: BootState | undefined
  /** The bootloader waits before it starts this slot, so that a device which cannot come up does not reset in a frenzy. */
  readonly pause: boolean
}

/** Decides one boot. `state` is undefined when neither copy can be read. */
export function onBoot(state: BootState | undefined, world: BootWorld = GOOD_WORLD): BootDecision {
  const wish = wanted(state, world)
  const other = otherSlot(wish.slot)
  const decision =
    !world.loadable[wish.slot] && world.loadable[other]
      ? { ...wish, slot: other, boot: 'fallback' as const, why: 'image-unreadable' as const }
      : wish
  if (!world.loadable[decision.slot]) return { ...decision, slot: undefined, pause: true }
  return { ...decision, pause: decision.boot !== 'try' && world.starts[decision.slot] >= BROKEN_AFTER }
}

type Wish = Omit<BootDecision, 'slot' | 'pause'> & { readonly slot: Slot }

function wanted(state: BootState | undefined, { starts, writable, noted }: BootWorld): Wish {
  const broken = (slot: Slot): boolean => starts[slot] >= BROKEN_AFTER
  if (state === undefined) {
    // The note on the data partition knows what was primary. Without it the slot that came up last is the best guess.
    // Either is given up when it has proved not to come up.
    const first = noted ?? starts.up ?? 'a'
    const slot = broken(first) && !broken(otherSlot(first)) ? otherSlot(first) : first
    return { slot, boot: 'fallback', why: 'state-unreadable', left: 0, newState: undefined }
  }
  const { primary, trial, left } = state
  if (trial !== undefined && left > 0 && writable) {
    const newState = { ...state, left: left - 1 }
    return { slot: trial, boot: 'try', why: 'ok', left: left - 1, newState }
  }
  if (trial !== undefined) {
    const why = left > 0 ? 'counter-unwritable' : 'tries-spent'
    return { slot: primary, boot: 'fallback', why, left, newState: undefined }
  }
  const spare = otherSlot(primary)
  if (state.spare && broken(primary) && !broken(spare))
    return { slot: spare, boot: 'fallback', why: 'primary-broken', left: 0, newState: undefined }
  return { slot: primary, boot: 'committed', why: 'ok', left: 0, newState: undefined }
}

/** Throws BOOT_STATE_INVALID when `state` is not one that the machine can reach. */
export function checkState(state: BootState): BootState {
  const { generation, primary, trial, left, spare } = state
  const bad = (what: string) => bootErrors.BOOT_STATE_INVALID(`${what} in ${JSON.stringify(state)}`)
  if (!Number.isSafeInteger(generation) || generation < 0 || generation > MAX_GENERATION)
    throw bad(`generation must be 0 .. ${MAX_GENERATION}`)
  if (!Number.isInteger(left) || left < 0 || left > MAX_TRIES) throw bad(`left must be 0 .. ${MAX_TRIES}`)
  if (trial === primary) throw bad('the trial is the primary')
  if (trial === undefined && left !== 0) throw bad('tries without a trial')
  if (trial !== undefined && spare) throw bad('a spare besides primary and trial')
  return state
}

function next(state: BootState, change: Partial<BootState>): BootState {
  checkState(state)
  if (state.generation >= MAX_GENERATION)
    throw bootErrors.BOOT_GENERATION_SPENT(`the boot state is at generation ${state.generation}, the last one`)
  return checkState({ ...state, ...change, generation: state.generation + 1 })
}

/** The state of a device that runs `primary` and holds nothing else: at provisioning, or after both copies were lost. */
export function freshState(primary: Slot): BootState {
  return { generation: 1, primary, trial: undefined, left: 0, spare: false }
}

/**
 * Says that the inactive slot is about to be overwritten: it is neither spare nor on trial any more.
 * Stands before the first byte of an install.
 */
export function claim(state: BootState): BootState {
  return next(state, { trial: undefined, left: 0, spare: false })
}

/**
 * Puts `slot` on trial for `tries` boots (1 .. 9). The single write that makes the next boot try it.
 * Throws BOOT_ARM_ACTIVE when it is the primary.
 */
export function arm(state: BootState, slot: Slot, tries: number = DEFAULT_TRIES): BootState {
  if (slot === state.primary) throw bootErrors.BOOT_ARM_ACTIVE(`slot ${slot} is the primary slot`)
  if (!Number.isInteger(tries) || tries < 1 || tries > MAX_TRIES)
    throw bootErrors.BOOT_STATE_INVALID(`tries must be 1 .. ${MAX_TRIES}, not ${tries}`)
  return next(state, { trial: slot, left: tries, spare: false })
}

/**
 * Makes `slot`, which runs and proved healthy, the primary; the old primary becomes the spare.
 * Throws BOOT_COMMIT_NOT_TRIED unless `slot` is on trial.
 */
export function commit(state: BootState, slot: Slot): BootState {
  if (state.trial !== slot)
    throw bootErrors.BOOT_COMMIT_NOT_TRIED(`slot ${slot} is not on trial; the trial is ${state.trial ?? 'none'}`)
  return next(state, { primary: slot, trial: undefined, left: 0, spare: true })
}

/**
 * Makes the spare the primary because it runs while the primary does not come up (`why=primary-broken` or
 * `why=image-unreadable`). The slot left behind is no spare: it is the broken one.
 * Throws BOOT_NO_SPARE unless `slot` is the spare.
 */
export function adopt(state: BootState, slot: Slot): BootState {
  if (!state.spare || slot !== otherSlot(state.primary))
    throw bootErrors.BOOT_NO_SPARE(`slot ${slot} is not the spare of ${JSON.stringify(state)}`)
  return vouch(state, slot)
}

/**
 * Makes `slot` the primary because a person says so: it runs and is no spare, which is where a device ends whose primary
 * cannot be loaded while the other slot holds what was never committed. Throws BOOT_STATE_INVALID when it is the primary.
 */
export function vouch(state: BootState, slot: Slot): BootState {
  if (slot === state.primary) throw bootErrors.BOOT_STATE_INVALID(`slot ${slot} is the primary already`)
  return next(state, { primary: slot, trial: undefined, left: 0, spare: false })
}

/**
 * Asks to return to the spare: it goes on trial like any release, so a spare that does not come up cannot strand the
 * device. Throws BOOT_NO_SPARE when there is none.
 */
export function rollBack(state: BootState, tries: number = DEFAULT_TRIES): BootState {
  if (!state.spare)
    throw bootErrors.BOOT_NO_SPARE(`slot ${otherSlot(state.primary)} holds nothing that was once committed`)
  return arm(state, otherSlot(state.primary), tries)
}

/**
 * Says that the spare may not be booted any more: the security floor has passed its release. The primary is then the only
 * slot, until the next install. Throws BOOT_NO_SPARE when there is none.
 */
export function retire(state: BootState): BootState {
  if (!state.spare) throw bootErrors.BOOT_NO_SPARE(`${JSON.stringify(state)} has no spare`)
  return next(state, { spare: false })
}

/** The same state with a new generation: written, it heals a copy that was torn. */
export function renew(state: BootState): BootState {
  return next(state, {})
}

/** Gives the trial of `slot` up (its health failed, or a person cancels): no tries left. Throws BOOT_REFUSE_NOT_TRIED. */
export function refuse(state: BootState, slot: Slot): BootState {
  if (state.trial !== slot)
    throw bootErrors.BOOT_REFUSE_NOT_TRIED(`slot ${slot} is not on trial; the trial is ${state.trial ?? 'none'}`)
  return next(state, { left: 0 })
}

/**
 * Takes back what is armed and was not tried.
 * @param spare the slot holds a release that was once committed and is not below the security floor: it may be booted as before
 * Throws BOOT_REFUSE_NOT_TRIED when nothing is on trial.
 */
export function disarm(state: BootState, spare: boolean): BootState {
  if (state.trial === undefined) throw bootErrors.BOOT_REFUSE_NOT_TRIED('nothing is on trial')
  return next(state, { trial: undefined, left: 0, spare })
}
