import { type Aspect, diffFiles } from '../../bundle/diff.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import { firstMatch } from '../etc/globs.ts'

/** What on a device differs from its release: where it may differ, which is /etc and the declared writable paths. */

export interface DriftEntry {
  readonly path: string
  readonly kind: 'added' | 'removed' | 'changed'
  /** Of what is changed. */
  readonly aspects: readonly Aspect[]
  /** Declared to be the device's own: no surprise. */
  readonly owned: boolean
  readonly release?: InventoryEntry
  readonly device?: InventoryEntry
}

export interface Drift {
  /** Paths that differ, and how many of them are declared to be the device's own. */
  readonly count: number
  readonly owned: number
  /** False: extended attributes could not be read here and are not compared. */
  readonly xattrs: boolean
  /** At most 10,000, in byte order of the paths. */
  readonly entries: readonly DriftEntry[]
}

const MAX_LISTED = 10_000
/** Made by the agent itself. */
const OURS = ['/etc/.bistable-release', '/etc/.bistable-merged']

export interface DriftRequest {
  /** "/etc" and writable paths, none inside another. */
  readonly folders: readonly string[]
  readonly owned: readonly string[]
  /** The release's inventory, whole. */
  readonly release: AsyncIterable<InventoryEntry>
  /** The device's, of these folders, in the same order. */
  readonly device: AsyncIterable<InventoryEntry>
  readonly xattrs: boolean
}

/**
 * Paths of changed files whose lines may be shown: not those of which only some people may read one side. What is shown is
 * copied into tickets, and a table of passwords should not be. Pure.
 * @param limit bytes of a file
 */
export function showable(entries: readonly DriftEntry[], limit: number): readonly string[] {
  const fits = (side: InventoryEntry | undefined) =>
    side?.type === 'file' && (side.size ?? 0) <= limit && (side.mode & 0o004) !== 0
  return entries
    .filter(({ kind, release, device }) => kind === 'changed' && fits(release) && fits(device))
    .map(({ path }) => path)
}

/** Both sides are read as streams; memory grows with what differs, up to 10,000 paths. */
export async function findDrift(request: DriftRequest): Promise<Drift> {
  const { folders, device: running } = request
  const entries: DriftEntry[] = []
  let count = 0
  let own = 0
  const within = (path: string) => folders.some((folder) => path === folder || path.startsWith(`${folder}/`))
  for await (const difference of diffFiles(only(request.release, within, request.xattrs), running)) {
    const changed = difference.kind === 'changed'
    const path = changed ? difference.before.path : difference.entry.path
    if (OURS.includes(path)) continue
    const owned = firstMatch(request.owned, path) !== undefined
    count++
    if (owned) own++
    if (entries.length === MAX_LISTED) continue
    const release = changed ? difference.before : difference.kind === 'removed' ? difference.entry : undefined
    const device = changed ? difference.after : difference.kind === 'added' ? difference.entry : undefined
    entries.push({
      path,
      kind: difference.kind,
      aspects: changed ? difference.aspects : [],
      owned,
      ...(release && { release }),
      ...(device && { device }),
    })
  }
  return { count, owned: own, xattrs: request.xattrs, entries }
}

async function* only(
  all: AsyncIterable<InventoryEntry>,
  within: (path: string) => boolean,
  xattrs: boolean,
): AsyncGenerator<InventoryEntry> {
  for await (const entry of all) if (within(entry.path)) yield xattrs ? entry : withoutXattrs(entry)
}

const withoutXattrs = ({ xattrs: _, ...rest }: InventoryEntry): InventoryEntry => rest

/** What `bistable drift` prints. Pure. */
export function driftText({
  count,
  owned,
  xattrs,
  entries,
  diffs = {},
}: Drift & { diffs?: Record<string, string> }): string {
  const lines = [`${count} paths differ from the release, ${owned} of them are the device's own`]
  if (!xattrs) lines.push('extended attributes are not compared: this system has no getfattr (package attr)')
  for (const { path, kind, aspects, owned } of entries) {
    lines.push(
      `${kind.padEnd(8)} ${path}${aspects.length > 0 ? ` (${aspects.join(', ')})` : ''}${owned ? ' [own]' : ''}`,
    )
    const diff = diffs[path]
    if (diff !== undefined) lines.push(...diff.split('\n').map((line) => `    ${line}`))
  }
  if (entries.length < count) lines.push(`and ${count - entries.length} more`)
  return lines.join('\n')
}
