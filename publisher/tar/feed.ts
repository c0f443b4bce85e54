import { ociErrors } from '../oci/errors.ts'

const NOTHING = new Uint8Array(0)

/** Takes a stream of pieces apart into lengths that the reader wants. Keeps at most one piece. */
export class ByteFeed {
  readonly #reopen: ((position: number) => AsyncIterable<Uint8Array>) | undefined
  #source: AsyncIterator<Uint8Array>
  #piece: Uint8Array = NOTHING
  #at = 0
  #position = 0

  /** `reopen` gives the same stream from another position on, for sources that can be sought. */
  constructor(source: AsyncIterable<Uint8Array>, reopen?: (position: number) => AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]()
    this.#reopen = reopen
  }

  /** Bytes taken so far. */
  get position(): number {
    return this.#position
  }

  /** Exactly `length` bytes, or undefined when the stream is at its end. Valid until the next call. */
  async take(length: number): Promise<Uint8Array | undefined> {
    if (this.#piece.length - this.#at >= length) return this.#cut(length)
    const out = new Uint8Array(length)
    let filled = 0
    while (filled < length) {
      if (!(await this.#fill())) {
        if (filled === 0) return undefined
        throw this.#short(length - filled)
      }
      const part = this.#cut(Math.min(length - filled, this.#piece.length - this.#at))
      out.set(part, filled)
      filled += part.length
    }
    return out
  }

  /** Between 1 and `most` bytes. Valid until the next call. */
  async some(most: number): Promise<Uint8Array> {
    if (!(await this.#fill())) throw this.#short(most)
    return this.#cut(Math.min(most, this.#piece.length - this.#at))
  }

  /** The next piece whole, whatever its length, or undefined at the end. */
  async rest(): Promise<Uint8Array | undefined> {
    return (await this.#fill()) ? this.#cut(this.#piece.length - this.#at) : undefined
  }

  async skip(length: number): Promise<void> {
    let left = length
    const here = Math.min(left, this.#piece.length - this.#at)
    this.#cut(here)
    left -= here
    if (left > 0 && this.#reopen !== undefined) {
      await this.#source.return?.()
      this.#position += left
      this.#source = this.#reopen(this.#position)[Symbol.asyncIterator]()
      return
    }
    while (left > 0) left -= (await this.some(left)).length
  }

  /** Skips `length` bytes, or the fewer that are left. */
  async skipAtMost(length: number): Promise<void> {
    let left = length
    while (left > 0 && (await this.#fill())) {
      const here = Math.min(left, this.#piece.length - this.#at)
      this.#cut(here)
      left -= here
    }
  }

  /** Lets go of the source. */
  async close(): Promise<void> {
    await this.#source.return?.()
  }

  async #fill(): Promise<boolean> {
    while (this.#at === this.#piece.length) {
      const next = await this.#source.next()
      if (next.done === true) return false
      this.#piece = next.value
      this.#at = 0
    }
    return true
  }

  #cut(length: number): Uint8Array {
    const part = this.#piece.subarray(this.#at, this.#at + length)
    this.#at += length
    this.#position += length
    return part
  }

  #short(wanted: number): Error {
    return ociErrors.LAYER_TRUNCATED(`the tar ends at byte ${this.#position}, ${wanted} more bytes were announced`)
  }
}
