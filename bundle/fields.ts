import * as v from 'valibot'
import { isSha256, type Sha256 } from '../base/bytes.ts'
import type { ReleaseNumber } from './types.ts'

/** Field rules that the statements share. */

export const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
export const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1))
/** Names of products, hardware and channels. The same rule as in root statements. */
export const name = v.pipe(
  v.string(),
  v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'wanted 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit'),
)
export const digest = v.custom<Sha256>(isSha256, 'wanted 64 lower-case hexadecimal digits')
export const time = v.pipe(
  v.string(),
  v.regex(/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$/, 'wanted a time like 2026-11-21T00:00:00Z'),
  v.check(isRealTime, 'no such time'),
)
export const releaseNumber = v.object({ epoch: count, counter: count })

function isRealTime(text: string): boolean {
  const parsed = new Date(text)
  return !Number.isNaN(parsed.getTime()) && parsed.toISOString() === text.replace('Z', '.000Z')
}

/** Negative when `a` is older than `b`, 0 when equal, positive when newer. The epoch decides first. */
export function compareNumbers(a: ReleaseNumber, b: ReleaseNumber): number {
  return a.epoch !== b.epoch ? a.epoch - b.epoch : a.counter - b.counter
}

/** "1.42": the epoch, then the counter. */
export function formatNumber(number: ReleaseNumber): string {
  return `${number.epoch}.${number.counter}`
}

/** All complaints of one parse in one sentence: "images.0.length: …; hardware: …". */
export function complaints(issues: readonly [v.BaseIssue<unknown>, ...v.BaseIssue<unknown>[]]): string {
  return issues.map((issue) => `${v.getDotPath(issue) ?? 'statement'}: ${issue.message}`).join('; ')
}

/** Paths of the fields in `given` that a parse dropped because they are not known. */
export function unknownFields(given: unknown, parsed: unknown, path = ''): string[] {
  if (typeof given !== 'object' || given === null || typeof parsed !== 'object' || parsed === null) return []
  const known = parsed as Record<string, unknown>
  return Object.entries(given).flatMap(([key, value]) =>
    Object.hasOwn(known, key) ? unknownFields(value, known[key], `${path}${key}.`) : [`${path}${key}`],
  )
}

/**
 * The names in a statement's `critical`, fields that its reader must know, of which this one does not. Looked at before
 * anything else, because a statement that needs a newer reader may look malformed to this one.
 * @param known the fields that are known; what all objects have is none of them
 */
export function strangeCriticalNames(json: unknown, known: object): string[] {
  if (typeof json !== 'object' || json === null || !('critical' in json) || !Array.isArray(json.critical)) return []
  return json.critical.filter((field) => typeof field === 'string' && !Object.hasOwn(known, field))
}
