import { appendFileSync } from 'node:fs'
import { afterAll, expect } from 'vitest'
import { isBistableError } from '../../base/errors.ts'

/**
 * The count of hostile inputs. Attack tests ask `attempt` for the code and give it to `refused`; elsewhere `codeOf` of
 * test/codes.ts counts for them, in tests whose name carries an attack id. Each file adds its count to ATTACKS_LOG,
 * which `npm run attacks` sums up.
 */

/** Ids of docs/threats.md in a test's full name: "A6 endless data: …", "B1 names that leave the image …". */
export const ID_IN_NAME = /(?:^| )([ABC](?:[1-9]|[12][0-9]|3[0-4]))(?=[: ])/g

const CODE = /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/
/** Set by `npm run attacks`: longer runs where the unit tests take a sample. */
export const WHOLE = process.env['ATTACKS_LOG'] !== undefined

let tried = 0
let accepted = 0

/** One more hostile input that was refused. */
export function countRefusals(more = 1): void {
  tried += more
}

/** For helpers outside this folder: counts when the running test is an attack. */
export function countInAttack(): void {
  if (ID_IN_NAME[Symbol.search](expect.getState().currentTestName ?? '') !== -1) tried++
}

/**
 * A hostile input `what` was answered with `code`: fails unless that is a typed refusal (one of `wanted`, if given).
 * @param code from `attempt`, or a code that the product reported
 */
export function refused(what: string, code: string | undefined, ...wanted: readonly string[]): void {
  if (code === undefined || !CODE.test(code)) {
    accepted++
    expect.fail(`${what}: ${code ?? 'no refusal'}`)
  }
  if (wanted.length > 0) expect(wanted, `${what}: ${code}`).toContain(code)
  tried++
}

/** The code that `work` is refused with, or 'accepted'. Anything that is not one of our errors is thrown on. */
export async function attempt(work: () => unknown): Promise<string> {
  try {
    await work()
  } catch (error) {
    if (isBistableError(error)) return error.code
    throw error
  }
  return 'accepted'
}

afterAll(() => {
  const log = process.env['ATTACKS_LOG']
  if (log !== undefined) appendFileSync(log, `${tried + accepted} ${accepted}\n`)
})
