import { matchesGlob } from './globs.ts'
import type { EtcChoices, EtcFinding, EtcPlan, EtcPlanned, EtcTree } from './types.ts'

/** After each path was decided for itself: folders for what stays, nothing below what is no folder, hard links. */

interface Trees {
  readonly old: EtcTree
  readonly local: EtcTree
  readonly image: EtcTree
}

/** Makes one consistent tree of the decided paths. Pure. */
export function shapePlan(
  decided: readonly EtcPlanned[],
  found: readonly EtcFinding[],
  trees: Trees,
  choices: EtcChoices,
): EtcPlan {
  const entries = new Map(decided.map((entry) => [entry.path, entry]))
  const findings = [...found]
  clearBelowFiles(entries, findings, trees, choices)
  addParents(entries, findings, trees)
  const sorted = [...entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1))
  return { entries: withLinks(sorted, trees), findings: findings.sort((a, b) => (a.path < b.path ? -1 : 1)) }
}

/** Where a path that stays lies below one that is no folder, one of them must give way. */
function clearBelowFiles(
  entries: Map<string, EtcPlanned>,
  findings: EtcFinding[],
  { local, image }: Trees,
  { rules }: EtcChoices,
): void {
  for (const entry of [...entries.values()]) {
    const above = parentsOf(entry.path).find((path) => {
      const parent = entries.get(path)
      return parent !== undefined && parent.type !== 'dir'
    })
    const blocker = above === undefined ? undefined : entries.get(above)
    if (above === undefined || blocker === undefined) continue
    const absolute = `/etc/${entry.path}`
    const rule = rules.find(({ path }) => matchesGlob(path, `/etc/${above}`))
    if (blocker.from === 'local' || entry.from === 'image') {
      // The device made a file of the folder: what the image has in it has no place any more.
      entries.delete(entry.path)
      findings.push({ path: absolute, kind: 'not-carried', level: 'note', taken: 'none', rule: `/etc/${above}` })
      continue
    }
    // The image made something else of a folder that holds the device's files.
    const facts = { path: absolute, kind: 'type-conflict', detail: `/etc/${above} is a ${blocker.type} now` } as const
    if (rule?.policy === 'image') {
      entries.delete(entry.path)
      findings.push({ ...facts, level: 'conflict', taken: 'image', rule: rule.path })
    } else {
      const folder = local.entries.get(above) ?? image.entries.get(above)
      if (folder === undefined) throw new TypeError(`${above} is on no side`)
      entries.set(above, madeFolder(folder, 'local'))
      const refused = rule?.policy !== 'local'
      const outcome = { level: refused ? 'refused' : 'conflict', taken: refused ? 'none' : 'local' } as const
      findings.push({ ...facts, ...outcome, rule: rule?.path ?? 'default' })
    }
  }
}

/** A folder that one side deleted stays while something in it stays. */
function addParents(entries: Map<string, EtcPlanned>, findings: EtcFinding[], { local, image }: Trees): void {
  for (const { path } of [...entries.values()])
    for (const parent of parentsOf(path)) {
      if (entries.has(parent)) continue
      const mine = local.entries.get(parent)
      const theirs = image.entries.get(parent)
      const folder = mine ?? theirs
      if (folder === undefined) throw new TypeError(`${parent} is on no side`)
      entries.set(parent, madeFolder(folder, mine === undefined ? 'image' : 'local'))
      // It was said that the folder goes; it does not.
      const said = findings.findIndex((finding) => finding.path === `/etc/${parent}` && finding.taken === 'image')
      if (said >= 0) findings.splice(said, 1)
      findings.push({
        path: `/etc/${parent}`,
        kind: mine === undefined ? 'directory-kept-for-new-files' : 'changed-here-deleted-in-image',
        level: 'conflict',
        taken: mine === undefined ? 'image' : 'local',
        rule: 'default',
      })
    }
}

function madeFolder(
  { path, mode, uid, gid, xattrs }: NonNullable<ReturnType<EtcTree['entries']['get']>>,
  from: 'local' | 'image',
): EtcPlanned {
  return { path, type: 'dir', from, mode, uid, gid, xattrs: xattrs ?? new Map() }
}

/** "a/b/c" has the parents "", "a" and "a/b". */
function parentsOf(path: string): string[] {
  if (path === '') return []
  const parts = path.split('/')
  return parts.map((_, i) => parts.slice(0, i).join('/'))
}

/**
 * Names of one file stay names of one file, when all that is left of them have one source and the same attributes. A link
 * that was made here joins paths from either source.
 */
function withLinks(entries: readonly EtcPlanned[], trees: Trees): EtcPlanned[] {
  const first = new Map<string, EtcPlanned>()
  const inodeIn = (side: keyof Trees, path: string) => trees[side].entries.get(path)?.inode
  return entries.map((entry) => {
    if (entry.type !== 'file' || entry.from === 'made') return entry
    for (const side of new Set([entry.from, 'local'] as const)) {
      const inode = inodeIn(side, entry.path)
      if (inode === undefined || trees[side].entries.get(entry.path)?.digest !== entry.digest) continue
      const known = first.get(`${side} ${inode}`)
      if (known === undefined) first.set(`${side} ${inode}`, entry)
      else if (sameFile(known, entry) && ((side === entry.from && side === known.from) || madeHere(known, entry)))
        return { ...entry, linkTo: known.path }
    }
    return entry
  })

  function madeHere(one: EtcPlanned, other: EtcPlanned): boolean {
    const was = inodeIn('old', one.path)
    return was === undefined || was !== inodeIn('old', other.path)
  }
}

function sameFile(one: EtcPlanned, other: EtcPlanned): boolean {
  const facts = ({ mode, uid, gid, xattrs, digest }: EtcPlanned) =>
    JSON.stringify([mode, uid, gid, [...xattrs], digest])
  return facts(one) === facts(other)
}
