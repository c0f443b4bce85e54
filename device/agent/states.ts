import type { RecordBody, State } from '../records/record.ts'

/** Every state's deadline and what follows when it passes. The machine takes its deadlines from here and nowhere else. */

/** Milliseconds that a state may last without progress. */
export interface Limits {
  /** An install without a byte, a block or a check moved on. */
  readonly stall: number
  /** From the slot being verified to the boot state being written. */
  readonly arm: number
  readonly tryFor: number
  /** More for a try whose commit is held for a person. */
  readonly hold: number
  /** From asking for a reboot to going down. */
  readonly reboot: number
  /** Where nothing is under way: until the next check of the channel must have ended. */
  readonly rest: number
}

export interface StateRule {
  readonly deadline: Exclude<keyof Limits, 'hold'>
  /** The state after the deadline, when nothing else came before. The same one: it is woken, and the deadline starts again. */
  readonly overdue: State['name']
  /** What else may come next. */
  readonly next: readonly State['name'][]
}

export const STATES: Readonly<Record<State['name'], StateRule>> = {
  idle: { deadline: 'rest', overdue: 'idle', next: ['downloading', 'verified'] },
  downloading: { deadline: 'stall', overdue: 'idle', next: ['verified', 'idle'] },
  verified: { deadline: 'arm', overdue: 'idle', next: ['armed', 'idle'] },
  armed: { deadline: 'rest', overdue: 'armed', next: ['trying', 'idle', 'downloading', 'fallen-back'] },
  trying: { deadline: 'tryFor', overdue: 'fallen-back', next: ['committed', 'fallen-back'] },
  committed: { deadline: 'rest', overdue: 'committed', next: ['downloading', 'verified'] },
  'fallen-back': { deadline: 'rest', overdue: 'fallen-back', next: ['downloading', 'verified'] },
}

/** Monotonic milliseconds at which a state entered or moved on at `mono` is overdue. */
export function deadlineOf({ state }: Pick<RecordBody, 'state'>, mono: number, limits: Limits): number {
  const held = state.name === 'trying' && state.job.hold === true ? limits.hold : 0
  return mono + limits[STATES[state.name].deadline] + held
}
