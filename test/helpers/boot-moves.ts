import { adopt, arm, claim, commit, disarm, refuse, retire, rollBack } from '../../bootloader/machine.ts'
import type { BootState } from '../../bootloader/state.ts'

/** Numbers that look random and are the same in every run: 0 .. most-1. */
export function picker(seed: number): (most: number) => number {
  let last = seed
  return (most) => {
    last = (last * 1103515245 + 12345) % 2 ** 31
    return last % most
  }
}

/** One of the moves that the agent could make in this state. `tries` and `back`: of an arming, of a roll back. */
export function anyMove(
  state: BootState,
  pick: (most: number) => number,
  tries: () => number,
  back?: number,
): BootState {
  const other = state.primary === 'a' ? 'b' : 'a'
  const moves = [() => claim(state), () => arm(claim(state), other, tries())]
  if (state.trial !== undefined)
    moves.push(
      () => commit(state, other),
      () => refuse(state, other),
      () => disarm(state, true),
    )
  if (state.spare)
    moves.push(
      () => adopt(state, other),
      () => retire(state),
      () => (back === undefined ? rollBack(state) : rollBack(state, back)),
    )
  return moves[pick(moves.length)]?.() ?? state
}
