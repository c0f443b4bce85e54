import { expect } from 'vitest'
import { type ErrorFamily, EXIT } from '../../base/errors.ts'

/** What a person sees of a refusal. */
export interface Refused {
  readonly exit: number
  readonly err: string
}

export interface Wanted {
  readonly family: ErrorFamily
  readonly code: string
  /** What the sentence must name: what was found, and what was wanted. */
  readonly says: readonly (string | RegExp)[]
}

/** A refusal is: the exit code of its family, the code, a sentence that says enough, and a next step. Nothing else. */
export function expectRefusal(ran: Refused, wanted: Wanted): void {
  const [, code, sentence, next] = /^bistable: ([A-Z][A-Z0-9_]+): (.+)\n {2}next: (.+)$/ms.exec(ran.err.trim()) ?? []
  expect({ code, exit: ran.exit }, ran.err).toEqual({ code: wanted.code, exit: EXIT[wanted.family] })
  for (const part of wanted.says) expect(sentence).toMatch(part)
  expect(next).toMatch(/^[A-Z'`].{10,}\.$/)
  // Neither the insides of the program nor characters that a person cannot see.
  expect(ran.err).not.toMatch(/\.(?:ts|mjs|js):\d|\bat async\b|undefined|\[object|NaN/)
  expect(ran.err).not.toMatch(/[\p{Cf}\p{Zl}\p{Zp}]|[^\P{Cc}\n]/u)
}
