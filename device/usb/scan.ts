import { lstat, opendir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { printable } from '../../base/printable.ts'

/** The bundles and add-ons on a mounted stick: names only, bounded, whatever somebody put there. */

/** Folders that are looked into, and entries that are read of each; the rest of a larger one is not seen. */
const FOLDERS = ['', 'bistable']
const MAX_ENTRIES = 20_000
/** Bundles that are opened, and add-ons. */
const MAX_FILES = 64
/** A name longer than this is nobody's bundle; FAT allows 255. */
const MAX_NAME_BYTES = 255

export interface Found {
  /** Paths of regular files, sorted by name. */
  readonly bundles: readonly string[]
  readonly addons: readonly string[]
  /** What was left out, for people. */
  readonly notes: readonly string[]
}

/**
 * Regular files named `*.bundle` and `*.addon`, hidden ones aside: macOS leaves `._NAME.bundle` beside every file it copies.
 * Links are not followed. Never fails: a folder that cannot be read is a note.
 */
export async function findOnStick(mounted: string): Promise<Found> {
  const paths: string[] = []
  const notes: string[] = []
  for (const folder of FOLDERS) await look(join(mounted, folder), folder === '' ? '/' : folder, paths, notes)
  paths.sort()
  const most = (kind: Kind) => {
    const found = paths.filter((path) => kindOf(basename(path)) === kind)
    if (found.length > MAX_FILES) notes.push(`${found.length} ${kind}s; the first ${MAX_FILES} by name are opened`)
    return found.slice(0, MAX_FILES)
  }
  return { bundles: most('bundle'), addons: most('addon'), notes: notes.slice(0, 16) }
}

async function look(folder: string, name: string, paths: string[], notes: string[]): Promise<void> {
  try {
    // A link in the place of the folder could lead off the stick.
    if (!(await lstat(folder)).isDirectory()) return
    const entries = await opendir(folder)
    let seen = 0
    for await (const entry of entries) {
      if (++seen > MAX_ENTRIES) {
        notes.push(`${name} has more than ${MAX_ENTRIES} entries; the rest was not looked at`)
        break
      }
      if (kindOf(entry.name) === undefined) continue
      // Some file systems do not tell the type in the listing.
      const path = join(folder, entry.name)
      if ((await lstat(path)).isFile()) paths.push(path)
      else notes.push(`${printable(entry.name)} is not a regular file`)
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : String(error)
    if (name === '/' || code !== 'ENOENT') notes.push(`${name} cannot be read: ${code}`)
  }
}

type Kind = 'bundle' | 'addon'

function kindOf(name: string): Kind | undefined {
  if (name.startsWith('.') || Buffer.byteLength(name) > MAX_NAME_BYTES) return undefined
  const ending = /\.(bundle|addon)$/i.exec(name)?.[1]?.toLowerCase()
  return ending === 'bundle' || ending === 'addon' ? ending : undefined
}
