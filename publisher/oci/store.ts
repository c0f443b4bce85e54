import { createHash, hash } from 'node:crypto'
import { closeSync, openSync, readSync, unlinkSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { KiB, MiB, type Sha256 } from '../../base/bytes.ts'
import { systemReason } from '../../base/errors.ts'
import { writeAll } from '../../base/write-all.ts'
import { AppendBuffer } from '../append-buffer.ts'
import type { TarReader } from '../tar/reader.ts'
import { ociErrors } from './errors.ts'

/** Contents up to here are taken in one piece. */
const SMALL = 64 * KiB

/**
 * The content store: the contents of all files, each once, back to back in one file of the work folder.
 *
 * One file with an index in memory instead of a file per content: no name from the image reaches the host, and tens of
 * thousands of small files cost no directory entries.
 */
export class ContentStore {
  readonly #path: string
  readonly #file: FileHandle
  readonly #offsets = new Map<Sha256, number>()
  readonly #buffer = new AppendBuffer((bytes, position) => this.#write(bytes, position))

  private constructor(path: string, file: FileHandle) {
    this.#path = path
    this.#file = file
  }

  /** Creates `contents.pack` in `workDir`, which must exist. */
  static async create(workDir: string): Promise<ContentStore> {
    const path = join(workDir, 'contents.pack')
    try {
      return new ContentStore(path, await open(path, 'wx', 0o600))
    } catch (cause) {
      throw failed('created', path, cause)
    }
  }

  /** Takes over the present file of `tar`, `size` bytes, and names it. */
  async add(tar: TarReader, size: number): Promise<Sha256> {
    if (size <= SMALL) {
      const bytes = await tar.whole(size)
      const digest = hash('sha256', bytes, 'hex') as Sha256
      if (this.#offsets.has(digest)) return digest
      this.#offsets.set(digest, this.#buffer.position)
      await this.#buffer.append(bytes)
      return digest
    }
    const start = this.#buffer.position
    const sum = createHash('sha256')
    for (let piece = await tar.piece(); piece !== undefined; piece = await tar.piece()) {
      sum.update(piece)
      await this.#buffer.append(piece)
    }
    const digest = sum.digest('hex') as Sha256
    if (this.#offsets.has(digest)) this.#buffer.rewind(start)
    else this.#offsets.set(digest, start)
    return digest
  }

  /**
   * Ends writing; what comes back reads the contents until it is closed. The pack file is gone afterwards.
   * @throws IMAGE_STORE_FAILED when the last of it cannot be written; the file is removed then
   */
  async seal(): Promise<SealedStore> {
    try {
      await this.#buffer.flush()
    } catch (error) {
      await this.abandon()
      throw error
    }
    await this.#file.close()
    return new SealedStore(this.#path, this.#offsets)
  }

  /** Ends writing and removes the file: the image was refused. */
  async abandon(): Promise<void> {
    await this.#buffer.settled()
    await this.#file.close()
    unlinkSync(this.#path)
  }

  async #write(bytes: Uint8Array, position: number): Promise<void> {
    try {
      await writeAll(this.#file, bytes, position)
    } catch (cause) {
      throw failed('written', this.#path, cause)
    }
  }
}

const PIECE = MiB

/** The contents, for reading. */
export class SealedStore {
  readonly #path: string
  readonly #offsets: ReadonlyMap<Sha256, number>
  readonly #fd: number

  constructor(path: string, offsets: ReadonlyMap<Sha256, number>) {
    this.#path = path
    this.#offsets = offsets
    this.#fd = openSync(path, 'r')
  }

  /** Streams `size` bytes of one content. Reads are synchronous: most files are far smaller than a thread's detour. */
  async *read(digest: Sha256, size: number): AsyncGenerator<Uint8Array> {
    const offset = this.#offsets.get(digest)
    if (offset === undefined) throw ociErrors.IMAGE_STORE_FAILED(`the content ${digest} is not in '${this.#path}'`)
    for (let at = 0; at < size; ) {
      const buffer = Buffer.allocUnsafeSlow(Math.min(PIECE, size - at))
      let got: number
      try {
        got = readSync(this.#fd, buffer, 0, buffer.length, offset + at)
      } catch (cause) {
        throw failed('read', this.#path, cause)
      }
      if (got === 0) throw ociErrors.IMAGE_STORE_FAILED(`'${this.#path}' ends early: another program cut it`)
      at += got
      yield buffer.subarray(0, got)
    }
  }

  /** Closes and removes the pack file. */
  close(): void {
    closeSync(this.#fd)
    unlinkSync(this.#path)
  }
}

function failed(what: string, path: string, cause: unknown): Error {
  return ociErrors.IMAGE_STORE_FAILED(`'${path}' cannot be ${what}: ${systemReason(cause)}`, { cause })
}
