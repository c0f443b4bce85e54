import { constants } from 'node:fs'
import { type FileHandle, open, readFile } from 'node:fs/promises'
import { MiB } from '../base/bytes.ts'
import { systemReason } from '../base/errors.ts'
import { crewBuffer, giveBack } from '../base/hash-crew.ts'
import type { ByteSource } from '../base/source.ts'
import { bundleErrors } from './errors.ts'

/** Two readers at once each have two buffers. */
const SPARE = 4

/**
 * Opens a regular file or a block device as a source. Its size is taken once, when it is opened.
 * @throws SOURCE_OPEN; reading throws SOURCE_READ
 */
export async function fileSource(path: string): Promise<ByteSource> {
  let file: FileHandle | undefined
  try {
    // Non-blocking: opening a FIFO must fail below, not wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const size = await sizeOf(file)
    return new FileSource(path, file, size)
  } catch (cause) {
    await file?.close()
    throw bundleErrors.SOURCE_OPEN(`cannot open ${path}: ${systemReason(cause)}`, { cause })
  }
}

async function sizeOf(file: FileHandle): Promise<number> {
  const stat = await file.stat()
  if (stat.isFile()) return stat.size
  if (!stat.isBlockDevice()) throw new Error('it is neither a file nor a block device')
  // fstat tells no size for a block device; sysfs does, in units of 512 bytes. Linux dev_t: 12 bits major in the middle.
  const major = Math.floor(stat.rdev / 256) % 4096
  const minor = (stat.rdev % 256) + Math.floor(stat.rdev / 2 ** 20) * 256
  return Number((await readFile(`/sys/dev/block/${major}:${minor}/size`, 'latin1')).trim()) * 512
}

class FileSource implements ByteSource {
  readonly name: string
  readonly size: number
  readonly #file: FileHandle
  /** Buffers of 1 MiB for the next read: fresh memory for each piece costs more than reading it. */
  readonly #spare: Uint8Array[] = []

  constructor(name: string, file: FileHandle, size: number) {
    this.name = name
    this.size = size
    this.#file = file
  }

  async *read(
    offset: number,
    length: number,
    options: { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array> {
    // One piece is read ahead, so that the disk works while the caller hashes.
    let present = this.#take(length)
    let other = this.#take(length - MiB)
    let ahead = this.#piece(present, offset, length)
    try {
      for (let at = 0; at < length; ) {
        options.signal?.throwIfAborted()
        const piece = await ahead
        if (piece.length === 0)
          throw bundleErrors.SOURCE_READ(`${this.name} ends at byte ${offset + at}, wanted ${length} from ${offset}`)
        at += piece.length
        ;[present, other] = [other, present]
        if (present.length === 0 && at < length) present = this.#take(length - at)
        ahead = this.#piece(present, offset + at, length - at)
        // Its failure is met when it is awaited; until then it must not count as unhandled.
        ahead.catch(() => undefined)
        yield piece
      }
    } finally {
      // Left early: the file must not be closed under a read, nor a buffer be used again.
      await ahead.catch(() => undefined)
      for (const buffer of [present, other])
        if (!giveBack(buffer) && buffer.length === MiB && this.#spare.length < SPARE) this.#spare.push(buffer)
    }
  }

  /** A buffer for a piece of what is left: 1 MiB, or less for less. */
  #take(left: number): Uint8Array {
    if (left < MiB) return Buffer.allocUnsafeSlow(Math.max(0, left))
    return crewBuffer() ?? this.#spare.pop() ?? Buffer.allocUnsafeSlow(MiB)
  }

  async #piece(into: Uint8Array, position: number, left: number): Promise<Uint8Array> {
    const length = Math.min(into.length, left)
    if (length <= 0) return into.subarray(0, 0)
    try {
      return into.subarray(0, (await this.#file.read(into, 0, length, position)).bytesRead)
    } catch (cause) {
      throw bundleErrors.SOURCE_READ(`cannot read ${this.name} at byte ${position}: ${systemReason(cause)}`, { cause })
    }
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}
