import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readdir, realpath, stat } from 'node:fs/promises'
import { join, sep } from 'node:path'
import { hex, MiB, type Sha256 } from '../../base/bytes.ts'
import { systemCode, systemReason } from '../../base/errors.ts'
import { type FOLDERS, MAX_RETAINED_BYTES, PIECE_BYTES, pieceLength, RETAINED_FOLDERS } from '../../broker/topics.ts'
import { isSafePath } from '../../bundle/freshness.ts'

/** What a publish folder holds, as a broker is told of it: small signed files, and bundles by their digest. */

export interface CatalogBundle {
  /** "bundles/demo-1.7-0123456789ab.bundle" */
  readonly file: string
  readonly size: number
  /** SHA-256 of the whole file. */
  readonly digest: Sha256
}

export interface CatalogChange {
  readonly file: string
  /** Undefined: the file is gone. */
  readonly content: Uint8Array | undefined
}

/** Open bundles; the one that was used longest ago is closed first. */
const MAX_OPEN = 8

export class Catalog {
  readonly #folder: string
  readonly #small = new Map<string, { readonly stamp: string; readonly content: Uint8Array }>()
  readonly #bundles = new Map<string, CatalogBundle & { readonly stamp: string }>()
  readonly #byDigest = new Map<Sha256, CatalogBundle>()
  readonly #open = new Map<Sha256, Promise<FileHandle>>()
  /** One sentence for each file that was left out, once. */
  readonly #complained = new Set<string>()
  readonly #say: (line: string) => void

  constructor(folder: string, say: (line: string) => void) {
    this.#folder = folder
    this.#say = say
  }

  /** All small files. */
  get small(): ReadonlyMap<string, { readonly content: Uint8Array }> {
    return this.#small
  }
  get bundles(): readonly CatalogBundle[] {
    return [...this.#bundles.values()]
  }

  /** What a file is; of small ones too. */
  find(file: string): { readonly size: number; readonly digest: Sha256 } | undefined {
    const small = this.#small.get(file)
    if (small === undefined) return this.#bundles.get(file)
    return { size: small.content.length, digest: digestOf(small.content) }
  }

  bundle(digest: Sha256): CatalogBundle | undefined {
    return this.#byDigest.get(digest)
  }

  /**
   * Looks at the folder again; bundles first, so that nothing is announced before it can be had.
   * @returns the small files that changed
   */
  async scan(signal?: AbortSignal): Promise<CatalogChange[]> {
    await this.#scanBundles(signal)
    const changes: CatalogChange[] = []
    const seen = new Set<string>()
    // Channels last: a device that hears of one asks for its assignment and roots next.
    for (const folder of [...RETAINED_FOLDERS].reverse())
      for (const { file, stamp, size } of await this.#list(folder)) {
        seen.add(file)
        if (this.#small.get(file)?.stamp === stamp) continue
        if (size > MAX_RETAINED_BYTES || size === 0) {
          this.#complain(`${file} has ${size} bytes; 1 to ${MAX_RETAINED_BYTES} can be announced`)
          continue
        }
        // One that cannot be read, or is gone again, must not keep the others back.
        const content = await this.#readSmall(file).catch((error: unknown) => {
          if (systemCode(error) !== 'ENOENT') this.#complain(`${file} cannot be read: ${systemReason(error)}`)
          return undefined
        })
        if (content === undefined) continue
        this.#small.set(file, { stamp, content })
        changes.push({ file, content })
      }
    for (const file of this.#small.keys()) {
      if (seen.has(file)) continue
      this.#small.delete(file)
      changes.push({ file, content: undefined })
    }
    return changes
  }

  /** The data of one piece. Fails when the file has become shorter. */
  async piece(bundle: CatalogBundle, index: number): Promise<Uint8Array> {
    const handle = await this.#handle(bundle)
    const data = Buffer.allocUnsafe(pieceLength(bundle.size, index))
    const { bytesRead } = await handle.read(data, 0, data.length, index * PIECE_BYTES)
    if (bytesRead !== data.length) throw new Error(`${bundle.file} was cut off`)
    return data
  }

  async close(): Promise<void> {
    const handles = [...this.#open.values()]
    this.#open.clear()
    for (const handle of handles) await (await handle.catch(() => undefined))?.close()
  }

  async #scanBundles(signal: AbortSignal | undefined): Promise<void> {
    const seen = new Set<string>()
    // Patches go in pieces as bundles do.
    const files = [...(await this.#list('deltas')), ...(await this.#list('bundles'))]
    for (const { file, stamp, size } of files) {
      seen.add(file)
      if (this.#bundles.get(file)?.stamp === stamp || size === 0) continue
      const digest = await this.#digestOf(file, signal)
      if (digest === undefined) continue
      const bundle = { file, stamp, size, digest }
      this.#bundles.set(file, bundle)
    }
    for (const file of this.#bundles.keys()) if (!seen.has(file)) this.#bundles.delete(file)
    this.#byDigest.clear()
    for (const bundle of this.#bundles.values()) this.#byDigest.set(bundle.digest, bundle)
    for (const digest of this.#open.keys()) if (!this.#byDigest.has(digest)) await this.#drop(digest)
  }

  async #list(folder: (typeof FOLDERS)[number]): Promise<{ file: string; stamp: string; size: number }[]> {
    const names = await readdir(join(this.#folder, folder)).catch((error: unknown) => {
      if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR') return []
      throw error
    })
    const found = []
    for (const name of names.sort()) {
      const file = `${folder}/${name}`
      // Hidden files are being written.
      if (name.startsWith('.')) continue
      if (!isSafePath(file)) {
        this.#complain(`${file} has a name that no topic can have`)
        continue
      }
      const about = await stat(join(this.#folder, file), { bigint: true }).catch(() => undefined)
      if (about?.isFile() !== true) continue
      found.push({ file, stamp: `${about.ino} ${about.size} ${about.mtimeNs}`, size: Number(about.size) })
    }
    return found
  }

  /** Undefined when the file is gone again, or cannot be read. */
  async #digestOf(file: string, signal: AbortSignal | undefined): Promise<Sha256 | undefined> {
    let handle: FileHandle | undefined
    try {
      handle = await this.#openInside(file)
      const hash = createHash('sha256')
      const stream = handle.createReadStream({ highWaterMark: MiB, autoClose: false })
      for await (const piece of stream) {
        signal?.throwIfAborted()
        hash.update(piece)
      }
      return hex(hash.digest()) as Sha256
    } catch (error) {
      signal?.throwIfAborted()
      if (systemCode(error) !== 'ENOENT') this.#complain(`${file} cannot be read: ${systemReason(error)}`)
      return undefined
    } finally {
      await handle?.close()
    }
  }

  async #handle(bundle: CatalogBundle): Promise<FileHandle> {
    const present = this.#open.get(bundle.digest)
    const handle = present ?? this.#openInside(bundle.file)
    this.#open.delete(bundle.digest)
    this.#open.set(bundle.digest, handle)
    const [oldest] = this.#open.keys()
    if (this.#open.size > MAX_OPEN && oldest !== undefined) await this.#drop(oldest)
    try {
      return await handle
    } catch (error) {
      this.#open.delete(bundle.digest)
      throw error
    }
  }

  async #readSmall(file: string): Promise<Uint8Array | undefined> {
    const handle = await this.#openInside(file)
    try {
      const bytes = Buffer.allocUnsafeSlow(MAX_RETAINED_BYTES + 1)
      const { bytesRead } = await handle.read(bytes, 0, bytes.length, 0)
      // It has grown since it was listed.
      return bytesRead > MAX_RETAINED_BYTES ? undefined : Uint8Array.from(bytes.subarray(0, bytesRead))
    } finally {
      await handle.close()
    }
  }

  /** Where links of the folder lead out of it, nobody is led, as little as over HTTP (serve.ts). */
  async #openInside(file: string): Promise<FileHandle> {
    const path = await realpath(join(this.#folder, file))
    if (!path.startsWith((await realpath(this.#folder)) + sep))
      throw new Error('it is a link that leads out of the folder')
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
  }

  async #drop(digest: Sha256): Promise<void> {
    const handle = this.#open.get(digest)
    this.#open.delete(digest)
    await (await handle?.catch(() => undefined))?.close()
  }

  #complain(line: string): void {
    if (this.#complained.has(line) || this.#complained.size > 1000) return
    this.#complained.add(line)
    this.#say(line)
  }
}

function digestOf(content: Uint8Array): Sha256 {
  return hex(createHash('sha256').update(content).digest()) as Sha256
}
