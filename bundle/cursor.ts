import { KiB } from '../base/bytes.ts'
import { type ByteSource, readExactly } from '../base/source.ts'
import { bundleErrors } from './errors.ts'

/** Members in front of the data are small; a source with a long way (a server) is asked for this much at once. */
const READ_AHEAD = 8 * KiB

/** Reads a source from its start, strictly in order, and never behind its end. */
export class Cursor {
  readonly source: ByteSource
  readonly #signal: AbortSignal | undefined
  #position = 0
  #ahead: Uint8Array = new Uint8Array(0)

  constructor(source: ByteSource, signal: AbortSignal | undefined) {
    this.source = source
    this.#signal = signal
  }

  get position(): number {
    return this.#position
  }

  /** Goes past `length` bytes without asking for them; the caller bounds it. */
  skip(length: number): void {
    this.#ahead = this.#ahead.subarray(Math.min(length, this.#ahead.length))
    this.#position += length
  }

  /** The next `length` bytes; the caller bounds it. @throws BUNDLE_TRUNCATED */
  async take(length: number): Promise<Uint8Array> {
    const { size } = this.source
    if (this.#position + length > size)
      throw bundleErrors.BUNDLE_TRUNCATED(
        `the bundle ends at byte ${size}, in the middle of bytes ${this.#position} to ${this.#position + length}`,
      )
    if (this.#ahead.length < length) {
      const from = this.#position + this.#ahead.length
      const want = Math.min(Math.max(length - this.#ahead.length, READ_AHEAD), size - from)
      const more = await readExactly(
        this.source,
        from,
        want,
        this.#signal === undefined ? {} : { signal: this.#signal },
      )
      this.#ahead = this.#ahead.length === 0 ? more : Buffer.concat([this.#ahead, more])
    }
    const taken = this.#ahead.slice(0, length)
    this.#ahead = this.#ahead.subarray(length)
    this.#position += length
    return taken
  }
}
