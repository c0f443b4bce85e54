import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'

/** What takes room below a folder: for the answer to "why is there none". */

export interface Big {
  /** A file or folder. */
  readonly path: string
  /** As it takes them on the medium. */
  readonly bytes: number
}

export interface Taken {
  readonly bytes: number
  readonly files: number
}

interface Node extends Big {
  readonly largest: Big | undefined
}

/** More are not looked at: this is for people, and a partition may have millions. */
const MAX_ENTRIES = 100_000
/** A folder that is nearly all of the one that it is in says more than that one. */
const NEARLY_ALL = 0.8

/**
 * The biggest things below `folder`, biggest first: each as deep as one path has nearly all of it.
 * @param skip paths that do not count
 * @returns at most `most`; nothing of what cannot be read
 */
export async function biggest(folder: string, skip: readonly string[], most = 3): Promise<readonly Big[]> {
  let seen = 0
  const visit = async (path: string): Promise<Node> => {
    const found = await lstat(path).catch(() => undefined)
    let bytes = (found?.blocks ?? 0) * 512
    let largest: Node | undefined
    if (found?.isDirectory() === true)
      for (const name of await readdir(path).catch(() => [])) {
        if (++seen > MAX_ENTRIES) break
        const at = join(path, name)
        if (skip.includes(at)) continue
        const child = await visit(at)
        bytes += child.bytes
        if (child.bytes > (largest?.bytes ?? 0)) largest = child
      }
    return {
      path,
      bytes,
      largest: largest !== undefined && largest.bytes >= bytes * NEARLY_ALL ? deep(largest) : undefined,
    }
  }
  const deep = ({ path, bytes, largest }: Node): Big => largest ?? { path, bytes }
  const all: Big[] = []
  for (const name of await readdir(folder).catch(() => []))
    if (!skip.includes(join(folder, name))) all.push(deep(await visit(join(folder, name))))
  return all
    .filter(({ bytes }) => bytes > 0)
    .sort((a, b) => b.bytes - a.bytes)
    .slice(0, most)
}

/** What a file or folder and all in it take; nothing where there is none. */
export async function taken(path: string): Promise<Taken> {
  let bytes = 0
  let files = 0
  const visit = async (at: string): Promise<void> => {
    const found = await lstat(at).catch(() => undefined)
    if (found === undefined || files >= MAX_ENTRIES) return
    files++
    bytes += found.blocks * 512
    if (found.isDirectory()) for (const name of await readdir(at).catch(() => [])) await visit(join(at, name))
  }
  await visit(path)
  return { bytes, files }
}
