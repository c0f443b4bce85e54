import type { RecordBody } from '../records/record.ts'

/** What time it is, as far as this device can know. Pure. */

export interface ClockFacts {
  readonly wall: Date
  readonly synchronised: boolean
}

/**
 * Milliseconds since 1970 that have passed for certain: never below the newest verified time, whatever the clock says,
 * and nothing but that while the clock is not set. It can be too early, and then nothing is called expired that is not.
 */
export function earliestNow(body: Pick<RecordBody, 'verifiedTime'>, clock: ClockFacts): number {
  const verified = body.verifiedTime === undefined ? 0 : Date.parse(body.verifiedTime)
  return clock.synchronised ? Math.max(clock.wall.getTime(), verified) : verified
}

/** Whether what expires then is still fresh: true or false when that can be known, undefined when nobody can say. */
export function isFresh(
  expires: string,
  body: Pick<RecordBody, 'verifiedTime'>,
  clock: ClockFacts,
): boolean | undefined {
  if (Date.parse(expires) <= earliestNow(body, clock)) return false
  return clock.synchronised ? true : undefined
}
