import type { DoorClock } from './clock.ts'

/** Lets one reader wait for the next thing that happens; what happens while nobody waits is not lost. */
export class Waiter {
  readonly #clock: DoorClock
  #rung = false
  #wake: (() => void) | undefined

  constructor(clock: DoorClock) {
    this.#clock = clock
  }

  ring(): void {
    this.#rung = true
    this.#wake?.()
  }

  /** Until the next ring, at most `ms`. @throws the signal's reason when it is aborted */
  async next(ms: number, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    if (!this.#rung) {
      const stop = new AbortController()
      const either = signal === undefined ? stop.signal : AbortSignal.any([stop.signal, signal])
      this.#wake = () => stop.abort()
      await this.#clock.sleep(ms, either).catch(() => undefined)
      this.#wake = undefined
      signal?.throwIfAborted()
    }
    this.#rung = false
  }
}
