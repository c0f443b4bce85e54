import { setTimeout as sleep } from 'node:timers/promises'

export interface DoorClock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Resolves after `ms`; rejects when the signal is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: DoorClock = {
  now: () => performance.now(),
  sleep: async (ms, signal) => {
    await sleep(ms, undefined, signal === undefined ? {} : { signal })
  },
}

/**
 * Waits for `work` until `ms` have passed; then `onTimeout` makes the error and is expected to stop the work.
 * The work's own late failure is swallowed.
 */
export async function within<T>(clock: DoorClock, ms: number, work: Promise<T>, onTimeout: () => Error): Promise<T> {
  const timer = new AbortController()
  const timeout = clock.sleep(ms, timer.signal).then(() => {
    throw onTimeout()
  })
  timeout.catch(() => undefined)
  work.catch(() => undefined)
  try {
    return await Promise.race([work, timeout])
  } finally {
    timer.abort()
  }
}
