import { bodyPieces, type RateLimits } from './body.ts'
import type { DoorClock } from './clock.ts'
import { type Answer, Transient } from './request.ts'

/** The body of a whole file, read on from read to read: what a server without ranges gives. */
export class WholeBody {
  readonly #name: string
  readonly #answer: Answer
  readonly #pieces: AsyncGenerator<Uint8Array>
  /** Where `rest`, or the next piece, stands in the file. */
  #at = 0
  #rest: Uint8Array = new Uint8Array(0)

  constructor(name: string, answer: Answer, clock: DoorClock, rate: RateLimits) {
    this.#name = name
    this.#answer = answer
    this.#pieces = bodyPieces(answer.body, answer.url, clock, rate)
    // Between reads nobody listens; an error that comes then is found by the next read.
    answer.body.on('error', () => undefined)
  }

  /** The first byte that can still be had. */
  get at(): number {
    return this.#at
  }

  /**
   * Skips to `from` and yields up to `end`.
   * @param count is told of every byte that came, skipped ones too; may throw
   * @throws Transient when the body ends before
   */
  async *read(
    from: number,
    end: number,
    signal: AbortSignal | undefined,
    count: (bytes: number) => void,
  ): AsyncGenerator<Uint8Array> {
    const stop = (): void => this.stop()
    signal?.addEventListener('abort', stop, { once: true })
    try {
      while (this.#at < end) {
        if (this.#rest.length === 0) {
          const next = await this.#pieces.next()
          signal?.throwIfAborted()
          if (next.done === true) throw new Transient('TRANSPORT_LOST', `${this.#name} ended at byte ${this.#at}`)
          this.#rest = next.value
          count(next.value.length)
        }
        const skip = Math.min(this.#rest.length, Math.max(0, from - this.#at))
        const wanted = this.#rest.subarray(skip, Math.min(this.#rest.length, end - this.#at))
        this.#at += skip + wanted.length
        this.#rest = this.#rest.subarray(skip + wanted.length)
        if (wanted.length > 0) yield wanted
      }
    } finally {
      signal?.removeEventListener('abort', stop)
    }
  }

  stop(): void {
    this.#answer.body.destroy()
  }
}
