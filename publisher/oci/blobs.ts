import { join } from 'node:path'
import { isBistableError, systemCode } from '../../base/errors.ts'
import { ByteFeed } from '../tar/feed.ts'
import { splitPath } from '../tar/names.ts'
import { TarReader } from '../tar/reader.ts'
import { detectCompression } from './decompress.ts'
import type { Descriptor } from './documents.ts'
import { ociErrors } from './errors.ts'
import { type FileRange, readRange, readWhole, wholeFile } from './file-range.ts'
import { Budget, DEFAULT_LIMITS, MAX_DOCUMENT } from './limits.ts'

/** Where an image's files are: a folder, or the members of an archive. */
export interface BlobSpace {
  /** For messages. */
  readonly name: string
  /** A file by its path below the image's root, or undefined. */
  find(path: string): Promise<FileRange | undefined>
}

export function folderSpace(dir: string): BlobSpace {
  return {
    name: dir,
    find: async (path) => {
      try {
        return await wholeFile(join(dir, path))
      } catch (error) {
        const cause = error instanceof Error ? error.cause : undefined
        if (isBistableError(error) && systemCode(cause) === 'ENOENT') return undefined
        throw error
      }
    },
  }
}

/** An archive has a few blobs per layer; this is far more than any honest one. */
const ARCHIVE_LIMITS = { ...DEFAULT_LIMITS, entries: 20_000 }
/** As Docker writes them: a layer that another image already holds is a symbolic link to it. */
const MAX_ARCHIVE_LINKS = 4

/**
 * Lists an archive once; contents stay in place and are read as ranges of the file.
 * @throws IMAGE_UNKNOWN_FORM, IMAGE_ARCHIVE_INVALID
 */
export async function archiveSpace(path: string): Promise<BlobSpace> {
  const whole = await wholeFile(path)
  await requireTar(whole)
  const members = new Map<string, FileRange | { readonly link: string }>()
  try {
    await listArchive(whole, members)
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw ociErrors.IMAGE_ARCHIVE_INVALID(`'${path}': ${cause.message}`, { cause })
  }
  return {
    name: path,
    find: async (wanted) => {
      let at = wanted
      for (let links = 0; links <= MAX_ARCHIVE_LINKS; links++) {
        const member = members.get(at)
        if (member === undefined || 'offset' in member) return member
        at = join(at, '..', member.link)
      }
      return undefined
    },
  }
}

/** A file that was never a tar is told in plain words; the reader would speak of headers. */
async function requireTar(whole: FileRange): Promise<void> {
  const start = Buffer.alloc(Math.min(whole.size, 512))
  let at = 0
  for await (const piece of readRange({ ...whole, size: start.length })) at += Buffer.from(piece).copy(start, at)
  const compression = start.toString('hex', 0, 6) === 'fd377a585a00' ? 'xz' : detectCompression(start)
  if (compression !== 'none')
    throw ociErrors.IMAGE_UNKNOWN_FORM(`'${whole.path}' is compressed by ${compression}, wanted a plain tar`, {
      next: `Unpack it first (${compression} -d), then give the tar.`,
    })
  const what = at === 0 ? 'is empty' : 'is no tar'
  if (at === 0 || (start[0] !== 0 && start.toString('latin1', 257, 262) !== 'ustar'))
    throw ociErrors.IMAGE_UNKNOWN_FORM(
      `'${whole.path}' ${what}, wanted an image archive or the folder of an OCI layout`,
    )
}

async function listArchive(
  whole: FileRange,
  members: Map<string, FileRange | { readonly link: string }>,
): Promise<void> {
  const feed = new ByteFeed(readRange(whole), (position) => readRange(whole, position))
  try {
    const tar = new TarReader(feed, new Budget(ARCHIVE_LIMITS))
    for (let entry = await tar.next(); entry !== undefined; entry = await tar.next()) {
      const name = splitPath(entry.name, entry.type === 'dir', ARCHIVE_LIMITS.depth).join('/')
      if (entry.type === 'dir') continue
      if (members.has(name)) throw ociErrors.IMAGE_ARCHIVE_INVALID(`'${whole.path}' holds '${name}' twice`)
      if (entry.type === 'file') members.set(name, { path: whole.path, offset: tar.position, size: entry.size })
      else if (entry.type === 'symlink') members.set(name, { link: entry.link })
      else throw ociErrors.IMAGE_ARCHIVE_INVALID(`'${whole.path}' holds the ${entry.type} '${name}'`)
    }
  } finally {
    await feed.close()
  }
}

/** Reads a JSON document by name; nothing is known of its size or digest. @throws IMAGE_BLOB_MISSING */
export async function readDocument(space: BlobSpace, path: string): Promise<Uint8Array> {
  const range = await space.find(path)
  if (range === undefined) throw ociErrors.IMAGE_BLOB_MISSING(`'${space.name}' holds no '${path}'`)
  return await bounded(range, path, {})
}

/** Reads a JSON document by descriptor, and checks size and digest before it is parsed. */
export async function readBlob(space: BlobSpace, from: Descriptor, what: string): Promise<Uint8Array> {
  const range = await findBlob(space, from, what)
  return await bounded(range, `${what} ${from.digest}`, from)
}

/** @throws IMAGE_BLOB_MISSING */
export async function findBlob(space: BlobSpace, from: Descriptor, what: string): Promise<FileRange> {
  const range = await space.find(`blobs/sha256/${from.digest}`)
  if (range !== undefined) return range
  throw ociErrors.IMAGE_BLOB_MISSING(`'${space.name}' does not hold the ${what} ${from.digest}`)
}

async function bounded(
  range: FileRange,
  what: string,
  expected: { readonly digest?: Descriptor['digest']; readonly size?: number },
): Promise<Uint8Array> {
  const bytes = await readWhole(range, MAX_DOCUMENT, expected)
  if (bytes !== undefined) return bytes
  throw ociErrors.IMAGE_JSON_INVALID(`the ${what} has ${range.size} bytes, at most ${MAX_DOCUMENT} are read`)
}
