import { type FileHandle, open, rm } from 'node:fs/promises'
import { MiB } from '../../base/bytes.ts'
import { systemReason } from '../../base/errors.ts'
import { writeAll } from '../../base/write-all.ts'
import { squashWriterErrors } from './errors.ts'

/** The image file being written: appended to in order; only its first bytes are written a second time. */
export class ImageOutput {
  readonly #path: string
  readonly #file: FileHandle
  #buffer = Buffer.allocUnsafeSlow(MiB)
  #used = 0
  #flushed = 0

  private constructor(path: string, file: FileHandle) {
    this.#path = path
    this.#file = file
  }

  /** Creates the file, or empties it. @throws SQUASHFS_WRITE */
  static async create(path: string): Promise<ImageOutput> {
    try {
      return new ImageOutput(path, await open(path, 'w'))
    } catch (cause) {
      throw failed(path, cause)
    }
  }

  /** Where the next byte will stand. */
  get position(): number {
    return this.#flushed + this.#used
  }

  /** Appends a copy of `bytes`. @throws SQUASHFS_WRITE */
  async append(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + this.#buffer.length - this.#used)
      this.#buffer.set(part, this.#used)
      this.#used += part.length
      at += part.length
      if (this.#used === this.#buffer.length) await this.#flush()
    }
  }

  /** Puts `head` at the start, over what stands there, and closes. @throws SQUASHFS_WRITE */
  async finish(head: Uint8Array): Promise<void> {
    await this.#flush()
    await this.#write(head, 0)
    await this.#file.close()
  }

  /** Closes without finishing, and takes half a file away; a device stays where it is. */
  async abandon(): Promise<void> {
    const regular = (await this.#file.stat()).isFile()
    await this.#file.close()
    if (regular) await rm(this.#path, { force: true })
  }

  async #flush(): Promise<void> {
    await this.#write(this.#buffer.subarray(0, this.#used), this.#flushed)
    this.#flushed += this.#used
    this.#used = 0
  }

  async #write(bytes: Uint8Array, position: number): Promise<void> {
    try {
      await writeAll(this.#file, bytes, position)
    } catch (cause) {
      throw failed(this.#path, cause)
    }
  }
}

function failed(path: string, cause: unknown): Error {
  return squashWriterErrors.SQUASHFS_WRITE(`cannot write ${path}: ${systemReason(cause)}`, { cause })
}
