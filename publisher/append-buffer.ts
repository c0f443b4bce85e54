import { MiB } from '../base/bytes.ts'

/**
 * What is appended to a file, in writes of 1 MiB: one buffer is written while the other one fills, never two writes at a
 * time. A write that fails is met by the next one that must wait for it, at the latest by `flush`.
 */
export class AppendBuffer {
  readonly #write: (bytes: Uint8Array, position: number) => Promise<void>
  #buffer = Buffer.allocUnsafeSlow(MiB)
  #spare = Buffer.allocUnsafeSlow(MiB)
  #used = 0
  /** Position in the file of the buffer's first byte. */
  #base = 0
  #written: Promise<void> = Promise.resolve()

  /** @param write writes all of `bytes` at a position of the file */
  constructor(write: (bytes: Uint8Array, position: number) => Promise<void>) {
    this.#write = write
  }

  /** Where the next byte will stand. */
  get position(): number {
    return this.#base + this.#used
  }

  /** Appends a copy of `bytes`. @throws what an earlier write threw */
  async append(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + this.#buffer.length - this.#used)
      this.#buffer.set(part, this.#used)
      this.#used += part.length
      at += part.length
      if (this.#used === this.#buffer.length) await this.#turn()
    }
  }

  /** Forgets all from position `to` on; what was written there is overwritten by what comes next. */
  rewind(to: number): void {
    if (to >= this.#base) this.#used = to - this.#base
    else {
      this.#base = to
      this.#used = 0
    }
  }

  /** Returns when everything is written. @throws what a write threw */
  async flush(): Promise<void> {
    if (this.#used > 0) await this.#turn()
    await this.#written
  }

  /** Returns when no write is under way, however it ended: the file may be closed. */
  async settled(): Promise<void> {
    await Promise.allSettled([this.#written])
  }

  async #turn(): Promise<void> {
    await this.#written
    this.#written = this.#write(this.#buffer.subarray(0, this.#used), this.#base)
    // A failure is met at the next turn; until then nobody waits for it.
    this.#written.catch(() => undefined)
    this.#base += this.#used
    this.#used = 0
    const filled = this.#buffer
    this.#buffer = this.#spare
    this.#spare = filled
  }
}
