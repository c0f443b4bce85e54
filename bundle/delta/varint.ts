import { deltaErrors } from './errors.ts'

/** Whole numbers in 7-bit groups, low ones first; signed ones folded, so that small ones stay short. */

export class VarintWriter {
  #bytes = Buffer.alloc(256)
  #length = 0

  /** @param value 0 to 2^53-1 */
  put(value: number): void {
    if (this.#length + 8 > this.#bytes.length) {
      const larger = Buffer.alloc(this.#bytes.length * 2)
      this.#bytes.copy(larger)
      this.#bytes = larger
    }
    let rest = value
    for (; rest >= 128; rest = Math.floor(rest / 128)) this.#bytes[this.#length++] = (rest % 128) | 128
    this.#bytes[this.#length++] = rest
  }

  /** @param value at most 2^52 on either side of 0 */
  putSigned(value: number): void {
    this.put(value < 0 ? -value * 2 - 1 : value * 2)
  }

  finish(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }
}

export class VarintReader {
  readonly #bytes: Uint8Array
  readonly #what: string
  #at = 0

  constructor(bytes: Uint8Array, what: string) {
    this.#bytes = bytes
    this.#what = what
  }

  get ended(): boolean {
    return this.#at === this.#bytes.length
  }

  /** @throws DELTA_INVALID at the end of the bytes, and for numbers over `most` */
  take(most: number): number {
    let value = 0
    for (let factor = 1; factor < 2 ** 53; factor *= 128) {
      const byte = this.#bytes[this.#at++]
      if (byte === undefined) throw deltaErrors.DELTA_INVALID(`the ${this.#what} of a patch end too early`)
      value += (byte & 127) * factor
      if (byte < 128) {
        if (value > most) break
        return value
      }
    }
    throw deltaErrors.DELTA_INVALID(`the ${this.#what} of a patch hold a number over ${most}`)
  }

  takeSigned(most: number): number {
    const folded = this.take(most * 2)
    return folded % 2 === 1 ? -(folded + 1) / 2 : folded / 2
  }
}
