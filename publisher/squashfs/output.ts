import { type FileHandle, open, rm } from 'node:fs/promises'
import { systemReason } from '../../base/errors.ts'
import { writeAll } from '../../base/write-all.ts'
import { AppendBuffer } from '../append-buffer.ts'
import { squashWriterErrors } from './errors.ts'

/** The image file being written: appended to in order; only its first bytes are written a second time. */
export class ImageOutput {
  readonly #path: string
  readonly #file: FileHandle
  readonly #buffer = new AppendBuffer((bytes, position) => this.#write(bytes, position))

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
    return this.#buffer.position
  }

  /** Appends a copy of `bytes`. @throws SQUASHFS_WRITE */
  append(bytes: Uint8Array): Promise<void> {
    return this.#buffer.append(bytes)
  }

  /** Puts `head` at the start, over what stands there, and closes. @throws SQUASHFS_WRITE */
  async finish(head: Uint8Array): Promise<void> {
    await this.#buffer.flush()
    await this.#write(head, 0)
    await this.#file.close()
  }

  /** Closes without finishing, and takes half a file away; a device stays where it is. */
  async abandon(): Promise<void> {
    await this.#buffer.settled()
    const regular = (await this.#file.stat()).isFile()
    await this.#file.close()
    if (regular) await rm(this.#path, { force: true })
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
