import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Sha256 } from '../../base/bytes.ts'
import { systemCode, systemReason } from '../../base/errors.ts'
import { ociErrors } from './errors.ts'

/** A blob as bytes of a file: all of a file in a layout folder, or a member of an archive. */
export interface FileRange {
  readonly path: string
  readonly offset: number
  readonly size: number
}

const PIECE = 256 * 1024

/** Opens a regular file; a FIFO or device in its place must not stop or feed us. */
async function openFile(path: string): Promise<FileHandle> {
  let handle: FileHandle
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    throw ociErrors.IMAGE_NOT_FOUND(`'${path}' cannot be opened: ${systemReason(cause)}`, { cause })
  }
  if ((await handle.stat()).isFile()) return handle
  await handle.close()
  throw ociErrors.IMAGE_NOT_FOUND(`'${path}' is not a regular file`)
}

/** The whole of a file as a range. */
export async function wholeFile(path: string): Promise<FileRange> {
  const handle = await openFile(path)
  try {
    return { path, offset: 0, size: (await handle.stat()).size }
  } finally {
    await handle.close()
  }
}

/** Streams the range from byte `from` of it on, one piece ahead of the taker; ends early when the file does. */
export async function* readRange(range: FileRange, from = 0, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const handle = await openFile(range.path)
  const read = async (at: number): Promise<Uint8Array> => {
    const buffer = Buffer.allocUnsafeSlow(Math.max(0, Math.min(PIECE, range.size - at)))
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, range.offset + at)
    return buffer.subarray(0, bytesRead)
  }
  const start = (at: number): Promise<Uint8Array> => {
    const reading = read(at)
    // It is awaited when the taker comes back; until then a failure must not count as unhandled.
    reading.catch(() => {})
    return reading
  }
  let at = from
  let ahead = start(at)
  try {
    for (let piece = await ahead; piece.length > 0; piece = await ahead) {
      signal?.throwIfAborted()
      at += piece.length
      ahead = start(at)
      yield piece
    }
  } catch (cause) {
    if (systemCode(cause) === undefined || signal?.aborted === true) throw cause
    throw ociErrors.IMAGE_NOT_FOUND(`'${range.path}' cannot be read: ${systemReason(cause)}`, { cause })
  } finally {
    await Promise.allSettled([ahead])
    await handle.close()
  }
}

/** What a blob must be: each undefined fact is not known, so not checked. */
export interface Expected {
  readonly digest?: Sha256 | undefined
  readonly size?: number | undefined
}

/** Reads a range once, and tells at the end whether it was what it must be. */
export class CheckedRange {
  readonly #range: FileRange
  readonly #expected: Expected
  readonly #signal: AbortSignal | undefined
  readonly #hash = createHash('sha256')
  #at = 0

  /** @throws IMAGE_DIGEST_MISMATCH when the size alone is wrong */
  constructor(range: FileRange, expected: Expected, signal?: AbortSignal) {
    this.#range = range
    this.#expected = expected
    this.#signal = signal
    if (expected.size !== undefined && expected.size !== range.size)
      throw ociErrors.IMAGE_DIGEST_MISMATCH(
        `the blob ${nameOf(range, expected)} has ${range.size} bytes, ${expected.size} are announced`,
      )
  }

  async *pieces(): AsyncGenerator<Uint8Array> {
    for await (const piece of readRange(this.#range, this.#at, this.#signal)) {
      this.#hash.update(piece)
      this.#at += piece.length
      yield piece
    }
  }

  /**
   * Reads what was left unread and compares.
   * @throws IMAGE_DIGEST_MISMATCH
   */
  async finish(): Promise<Sha256> {
    const pieces = this.pieces()
    while ((await pieces.next()).done !== true);
    const name = nameOf(this.#range, this.#expected)
    if (this.#at !== this.#range.size)
      throw ociErrors.IMAGE_DIGEST_MISMATCH(
        `${name} became shorter while it was read: ${this.#at} of ${this.#range.size} bytes`,
      )
    const digest = this.#hash.digest('hex') as Sha256
    if (this.#expected.digest !== undefined && this.#expected.digest !== digest)
      throw ociErrors.IMAGE_DIGEST_MISMATCH(`the blob ${name} has the SHA-256 ${digest}`)
    return digest
  }
}

function nameOf(range: FileRange, expected: Expected): string {
  return expected.digest ?? `'${range.path}'`
}

/** Reads a range whole, at most `atMost` bytes; undefined when it is longer. */
export async function readWhole(range: FileRange, atMost: number, expected: Expected): Promise<Uint8Array | undefined> {
  if (range.size > atMost) return undefined
  const checked = new CheckedRange(range, expected)
  const pieces: Uint8Array[] = []
  for await (const piece of checked.pieces()) pieces.push(piece)
  await checked.finish()
  return Buffer.concat(pieces)
}
