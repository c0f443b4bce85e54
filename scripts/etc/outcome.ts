import type { EtcEntry, EtcFinding, EtcTree } from '../../device/etc/types.ts'

/** What became of a path, in the words of the table: whose it is now, and whose attributes it has. Pure. */

export interface Sides {
  readonly old: EtcTree
  readonly local: EtcTree
  readonly image: EtcTree
}

export function outcome(path: string, result: EtcTree, sides: Sides): string {
  const now = result.entries.get(path)
  const [local, image] = [sides.local.entries.get(path), sides.image.entries.get(path)]
  if (now === undefined) return local === undefined && image === undefined ? 'absent' : 'deleted'
  const whose = sideOf(body, now, local, image) ?? 'both'
  const parts = [whose]
  for (const [what, value] of [
    ['mode', (entry: EtcEntry) => String(entry.mode)],
    ['attributes', (entry: EtcEntry) => JSON.stringify([...(entry.xattrs ?? [])].sort())],
  ] as const) {
    if (local === undefined || image === undefined || value(local) === value(image)) continue
    const from = sideOf(value, now, local, image)
    if (from !== whose || whose === 'same') parts.push(`${from ?? 'other'} ${what}`)
  }
  const shares = (tree: EtcTree, entry: EtcEntry) =>
    entry.inode !== undefined && [...tree.entries.values()].filter(({ inode }) => inode === entry.inode).length > 1
  if (local !== undefined && shares(sides.local, local) && !shares(result, now)) parts.push('link lost')
  return parts.join(', ')
}

const body = (entry: EtcEntry) =>
  entry.type === 'file' ? `file ${entry.digest}` : `${entry.type} ${entry.target ?? ''}`

function sideOf(
  value: (entry: EtcEntry) => string,
  now: EtcEntry,
  local: EtcEntry | undefined,
  image: EtcEntry | undefined,
): 'same' | 'local' | 'image' | undefined {
  const [isLocal, isImage] = [local, image].map((entry) => entry !== undefined && value(entry) === value(now))
  if (isLocal && isImage) return 'same'
  return isLocal ? 'local' : isImage ? 'image' : undefined
}

/** "refused", "reported", "noted", or nothing. */
export function said(findings: readonly EtcFinding[]): string {
  if (findings.some(({ level }) => level === 'refused')) return 'refused before arming, with the paths; a rule decides'
  if (findings.some(({ level }) => level === 'conflict')) return 'reported'
  return findings.length > 0 ? 'noted' : ''
}
