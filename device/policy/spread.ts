import { createHash } from 'node:crypto'

/** How a fleet keeps out of step: a place of its own for every device, and pauses that never fall together. Pure. */

/**
 * How long a fleet that starts together takes for its first checks: milliseconds from the start of an agent.
 * @param place 0 <= value < 1
 */
export function firstPause(intervalMs: number, place: number): number {
  return place * Math.min(intervalMs, 60_000)
}

/** First pause after a failure, and the longest: a device is back at work within five minutes of its link's return. */
const RETRY_FIRST_MS = 30_000
const RETRY_MAX_MS = 150_000

/** Where a device stands in anything that is spread: 0 <= value < 1, the same for ever, another for every purpose. */
export function placeOf(deviceId: string, purpose: string): number {
  return createHash('sha256').update(`${purpose}\n${deviceId}`).digest().readUIntBE(0, 6) / 2 ** 48
}

/**
 * Milliseconds until the next check after one that succeeded: the interval, within a tenth of it.
 * @param random 0 <= value < 1
 */
export function pollPause(intervalMs: number, random: number): number {
  return intervalMs * (0.9 + random * 0.2)
}

/**
 * Milliseconds until the next check after `failures` in a row (1, 2, …): doubling from 30 s, between half and the whole.
 * @param passing the link, a server or a disk failed, which may pass at any moment: never longer than two and a half minutes.
 *   Otherwise (nothing but a person or a publisher can help) up to the interval.
 */
export function retryPause(intervalMs: number, failures: number, passing: boolean, random: number): number {
  const most = Math.min(intervalMs, passing ? RETRY_MAX_MS : intervalMs)
  const full = Math.min(most, RETRY_FIRST_MS * 2 ** Math.min(failures - 1, 20))
  return full * (0.5 + random * 0.5)
}
