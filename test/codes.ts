import { isBistableError } from '../base/errors.ts'
import { countInAttack } from './attacks/refused.ts'

/** The code that `work` is refused with, or 'accepted'; anything that is not one of our errors is thrown on. */
export function codeOf(work: () => unknown): string {
  try {
    work()
  } catch (error) {
    return known(error)
  }
  return 'accepted'
}

export async function codeOfAsync(work: () => Promise<unknown>): Promise<string> {
  try {
    await work()
  } catch (error) {
    return known(error)
  }
  return 'accepted'
}

function known(error: unknown): string {
  if (!isBistableError(error)) throw error
  countInAttack()
  return error.code
}
