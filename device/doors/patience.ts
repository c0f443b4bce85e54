import { KiB } from '../../base/bytes.ts'

/** How long a door goes on trying. All times in milliseconds. */
export interface PatienceLimits {
  /** First pause; doubles with each failure in a row. */
  readonly firstMs: number
  readonly maxMs: number
  /** Failures in a row without progress before giving up. */
  readonly tries: number
}

export const DEFAULT_PATIENCE: PatienceLimits = { firstMs: 1000, maxMs: 60_000, tries: 8 }

/** This many bytes are progress; so a server that gives a byte a time cannot keep a device busy for ever. */
const PROGRESS_BYTES = 16 * KiB

/**
 * Counts failures in a row. Pure: randomness comes in, the pause comes out.
 * Pauses lie between half of the doubled time and the whole of it, so that a fleet does not come back in step.
 */
export class Patience {
  readonly #limits: PatienceLimits
  readonly #random: () => number
  #failures = 0
  #bytes = 0

  constructor(limits: PatienceLimits, random: () => number) {
    this.#limits = limits
    this.#random = random
  }

  progress(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes < PROGRESS_BYTES) return
    this.#bytes = 0
    this.#failures = 0
  }

  /** Milliseconds to wait before the next try, or undefined: give up. `atLeast`: what the server asked for. */
  failed(atLeast = 0): number | undefined {
    this.#failures++
    if (this.#failures >= this.#limits.tries) return undefined
    const full = Math.min(this.#limits.maxMs, this.#limits.firstMs * 2 ** (this.#failures - 1))
    return Math.max(full / 2 + (this.#random() * full) / 2, Math.min(atLeast, this.#limits.maxMs))
  }
}
