import { type DirectoryEntry, readDirectory } from './directory.ts'
import { squashErrors } from './errors.ts'
import type { Inode } from './inode.ts'
import type { Metadata } from './metadata.ts'
import { corrupt, type Superblock } from './superblock.ts'

/** The walk over all entries of an image, in byte order of their paths. */

/** Entries listed but not yet walked, over all open directories: a bound on memory. */
const MAX_PENDING = 1 << 20
/** Entries in all: hard links make them more than inodes. */
const MAX_ENTRIES = 1 << 24
/** PATH_MAX without its NUL. */
const MAX_PATH = 4095

export interface WalkParts {
  readonly superblock: Superblock
  readonly metadata: Metadata
  readonly inodeAt: (at: { readonly block: number; readonly offset: number }) => Promise<Inode>
}

export interface Found {
  /** "usr/bin/env"; the root directory is "". */
  readonly path: string
  readonly inode: Inode
}

/**
 * What comes next. A directory comes twice: as an entry, at its name, and later for its contents, at its name plus "/",
 * because "a-b" stands between "a" and "a/b" in byte order.
 */
interface Step {
  readonly key: string
  readonly path: string
  readonly entry: DirectoryEntry
  readonly contents: boolean
}

/**
 * Every path of the image, or of one of its folders, with its inode: a directory before what is in it, all in byte order of
 * the UTF-8 paths.
 * @param from "etc": this entry and all below it; nothing when there is none
 * @throws SQUASHFS_CORRUPT, SQUASHFS_LOOP, SQUASHFS_NAME, SQUASHFS_TOO_LARGE
 */
export async function* walkImage(parts: WalkParts, from = ''): AsyncGenerator<Found> {
  const root = await findInode(parts, from)
  if (root === undefined) return
  if (root.directory === undefined && from === '') throw corrupt(`the root inode is a ${root.type}`)
  const links = new LinkCounter(parts.superblock.inodes)
  links.count(root, from)
  yield { path: from, inode: root }
  const open: Step[][] = [await listSteps(parts, root, from === '' ? '' : `${from}/`, 0)]
  let pending = open[0]?.length ?? 0
  let entries = 1
  for (let top = open.at(-1); top !== undefined; top = open.at(-1)) {
    const step = top.pop()
    if (step === undefined) {
      open.pop()
      continue
    }
    pending--
    const inode = await parts.inodeAt(step.entry)
    if (step.contents) {
      const steps = await listSteps(parts, inode, `${step.path}/`, pending)
      pending += steps.length
      open.push(steps)
      continue
    }
    checkEntry(step.entry, inode, step.path)
    links.count(inode, step.path)
    if (++entries > MAX_ENTRIES) throw squashErrors.SQUASHFS_TOO_LARGE(`more than ${MAX_ENTRIES} entries`)
    yield { path: step.path, inode }
  }
}

/** The inode behind a path ("/usr/bin/env" or "usr/bin/env"), symlinks not followed; undefined when there is none. */
export async function findInode(parts: WalkParts, path: string): Promise<Inode | undefined> {
  let inode = await parts.inodeAt(parts.superblock.root)
  for (const name of path.split('/').filter((part) => part !== '')) {
    if (inode.directory === undefined) return undefined
    let found: DirectoryEntry | undefined
    for await (const entry of readDirectory(parts.metadata, parts.superblock.directoryTable, inode.directory))
      if (entry.name === name) {
        found = entry
        break
      }
    if (found === undefined) return undefined
    inode = await parts.inodeAt(found)
    checkEntry(found, inode, path)
  }
  return inode
}

/** The names in a directory, in byte order. @throws SQUASHFS_TOO_LARGE when there are too many to hold */
export async function listNames(parts: WalkParts, inode: Inode): Promise<string[]> {
  const names: string[] = []
  if (inode.directory === undefined) return names
  for await (const entry of readDirectory(parts.metadata, parts.superblock.directoryTable, inode.directory)) {
    names.push(entry.name)
    checkPending(names.length)
  }
  return names
}

/** The steps of one directory, the first one last. */
async function listSteps(parts: WalkParts, inode: Inode, prefix: string, pending: number): Promise<Step[]> {
  const steps: Step[] = []
  if (inode.directory === undefined) return steps
  for await (const entry of readDirectory(parts.metadata, parts.superblock.directoryTable, inode.directory)) {
    const path = prefix + entry.name
    if (path.length > MAX_PATH || Buffer.byteLength(path) > MAX_PATH)
      throw squashErrors.SQUASHFS_TOO_LARGE(
        `a path is longer than ${MAX_PATH} bytes: ${JSON.stringify(path.slice(0, 80))}…`,
      )
    steps.push({ key: entry.key, path, entry, contents: false })
    if (entry.type === 'dir') steps.push({ key: `${entry.key}/`, path, entry, contents: true })
    checkPending(pending + steps.length)
  }
  return steps.sort((a, b) => (a.key < b.key ? 1 : -1))
}

function checkPending(count: number): void {
  if (count > MAX_PENDING) throw squashErrors.SQUASHFS_TOO_LARGE(`more than ${MAX_PENDING} entries in open directories`)
}

function checkEntry(entry: DirectoryEntry, inode: Inode, path: string): void {
  if (entry.type !== inode.type || entry.number !== inode.number)
    throw corrupt(
      `${JSON.stringify(path)} is listed as ${entry.type} ${entry.number}, its inode is ${inode.type} ${inode.number}`,
    )
}

/** Sees that no directory is reached twice, and nothing else more often than its link count says. */
class LinkCounter {
  readonly #seen: Uint8Array
  /** Times that inodes with more than one link may still be reached. */
  readonly #left = new Map<number, number>()

  constructor(inodes: number) {
    this.#seen = new Uint8Array((inodes >>> 3) + 1)
  }

  count(inode: Inode, path: string): void {
    const { number, nlink } = inode
    const byte = this.#seen[number >>> 3] ?? 0
    const bit = 1 << (number & 7)
    const allowed = inode.type === 'dir' ? 1 : nlink
    const left = (byte & bit) === 0 ? allowed : (this.#left.get(number) ?? 0)
    if (left < 1)
      throw squashErrors.SQUASHFS_LOOP(
        `${JSON.stringify(path)} reaches ${inode.type} inode ${number} more often than ${allowed} times`,
      )
    this.#seen[number >>> 3] = byte | bit
    if (left > 1) this.#left.set(number, left - 1)
    else this.#left.delete(number)
  }
}
