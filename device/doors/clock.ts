export interface DoorClock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Resolves after `ms`; rejects when the signal is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: DoorClock = {
  now: () => performance.now(),
  // Not that of node:timers/promises, which makes an error with a stack and a cause for each sleep that is not slept to its end.
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(signal.reason)
      const stop = (): void => {
        clearTimeout(timer)
        reject(signal?.reason)
      }
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', stop)
        resolve()
      }, ms)
      signal?.addEventListener('abort', stop, { once: true })
    }),
}

/** Why a timer ends that is no longer wanted: one for all, nobody sees it. */
const SETTLED = new Error('settled before its time was up')

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
    timer.abort(SETTLED)
  }
}

/** Waits for one thing after the other, each at most so long, with one timer for them all. */
export interface Patience {
  /** As `within`. One at a time. */
  wait<T>(work: Promise<T>): Promise<T>
  /** Ends the timer. */
  end(): void
}

/** @param onTimeout as of `within` */
export function patience(clock: DoorClock, ms: number, onTimeout: () => Error): Patience {
  const timer = new AbortController()
  let since: number | undefined
  let fail: (error: Error) => void = () => undefined
  let watching = false

  async function watch(): Promise<void> {
    for (;;) {
      const left = since === undefined ? ms : since + ms - clock.now()
      if (left <= 0) return fail(onTimeout())
      await clock.sleep(left, timer.signal)
    }
  }

  return {
    async wait(work) {
      since = clock.now()
      if (!watching) {
        watching = true
        watch().catch(() => undefined)
      }
      try {
        return await new Promise((resolve, reject) => {
          fail = reject
          work.then(resolve, reject)
        })
      } finally {
        since = undefined
      }
    },
    end: () => timer.abort(SETTLED),
  }
}
