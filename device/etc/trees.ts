import { createHash } from 'node:crypto'
import { lstatSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { MiB, type Sha256 } from '../../base/bytes.ts'
import { systemReason } from '../../base/errors.ts'
import { filePieces } from '../../base/file-pieces.ts'
import { fileTypeOf } from '../../base/file-type.ts'
import type { SquashEntry, Squashfs } from '../../bundle/squashfs/image.ts'
import { etcErrors } from './errors.ts'
import type { EtcEntry, EtcTree } from './types.ts'
import type { XattrTool } from './xattrs.ts'

/** The trees of a merge, listed with the digest of every file: from an image, and from a folder of this system. */

/** Paths of one tree. */
const MAX_ENTRIES = 20_000
/** Bytes of content of one tree. */
export const MAX_CONTENT = 64 * MiB
/** Files between two turns of the event loop. */
const BREATH = 64

class Listing {
  readonly #entries = new Map<string, EtcEntry>()
  readonly #whose: string
  readonly #most: number
  #content = 0

  constructor(whose: string, most = MAX_ENTRIES) {
    this.#whose = whose
    this.#most = most
  }

  /** @throws ETC_TOO_LARGE */
  add(entry: EtcEntry): void {
    this.#content += entry.size ?? 0
    this.#entries.set(entry.path, entry)
    if (this.#entries.size > this.#most || this.#content > MAX_CONTENT)
      throw etcErrors.ETC_TOO_LARGE(
        `${this.#whose} has more than ${this.#most} paths or ${MAX_CONTENT / MiB} MiB of content`,
      )
  }

  get entries(): ReadonlyMap<string, EtcEntry> {
    return this.#entries
  }
}

const joined = (folder: string, name: string) => (folder === '' ? name : `${folder}/${name}`)

/**
 * /etc of an image.
 * @throws ETC_TOO_LARGE; SQUASHFS_* and what its reader throws
 */
export async function imageTree(image: Squashfs, whose: string, signal?: AbortSignal): Promise<EtcTree> {
  const listing = new Listing(whose)
  const originals = new Map<string, SquashEntry>()
  for await (const entry of image.walk('etc')) {
    signal?.throwIfAborted()
    const path = entry.path.slice('etc/'.length)
    originals.set(path, entry)
    listing.add({
      path,
      type: entry.type,
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      ...(entry.type === 'file' && { size: entry.size, digest: await digestOf(image.read(entry)) }),
      ...(entry.target !== undefined && { target: entry.target }),
      xattrs: new Map([...entry.xattrs].map(([name, value]) => [name, Buffer.from(value).toString('base64')])),
      ...(entry.type === 'file' && entry.nlink > 1 && { inode: String(entry.inode) }),
    })
  }
  return {
    entries: listing.entries,
    read: (path) => {
      const entry = originals.get(path)
      if (entry === undefined) throw new TypeError(`${path} was not listed`)
      return image.read(entry)
    },
  }
}

/**
 * A folder of this system: the running /etc, or one beside it. A file that vanishes while it is listed is left out; what
 * changes meanwhile is listed as it was read.
 * @throws ETC_TOO_LARGE, ETC_UNREADABLE
 */
export async function folderTree(
  folder: string,
  xattrs: XattrTool,
  signal?: AbortSignal,
  most?: number,
): Promise<EtcTree> {
  const listing = new Listing(folder, most)
  const known = await xattrs.read(folder)
  const unnamed: string[] = []
  let visited = 0
  async function visit(path: string): Promise<void> {
    signal?.throwIfAborted()
    // The calls below wait for the file system, a file at a time: many times sooner done than by the thread pool.
    if (++visited % BREATH === 0) await setImmediate()
    const full = join(folder, path)
    const stat = lstatSync(full, { throwIfNoEntry: false })
    if (stat === undefined) {
      // What Node.js puts in the place of bytes that are no UTF-8: the name is another one then.
      if (path.includes('\ufffd')) unnamed.push(path)
      return
    }
    const type = fileTypeOf(stat)
    listing.add({
      path,
      type,
      mode: stat.mode & 0o7777,
      uid: stat.uid,
      gid: stat.gid,
      ...(type === 'file' && { size: stat.size, digest: await digestOf(filePieces(full, MAX_CONTENT)) }),
      ...(type === 'symlink' && { target: readlinkSync(full) }),
      xattrs: known === undefined ? undefined : (known.get(path) ?? new Map()),
      ...(type === 'file' && stat.nlink > 1 && { inode: String(stat.ino) }),
    })
    if (type === 'dir') for (const name of readdirSync(full)) await visit(joined(path, name))
  }
  try {
    await visit('')
  } catch (error) {
    if (error instanceof Error && 'errno' in error)
      throw etcErrors.ETC_UNREADABLE(`${folder}: ${systemReason(error)}`, { cause: error })
    throw error
  }
  return { entries: listing.entries, unnamed, read: (path) => filePieces(join(folder, path), MAX_CONTENT) }
}

async function digestOf(pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<Sha256> {
  const hash = createHash('sha256')
  for await (const piece of pieces) hash.update(piece)
  return hash.digest('hex') as Sha256
}
