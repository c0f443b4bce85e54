import type { EtcEntry } from './types.ts'

/** Mode, owner, group and extended attributes are merged one by one: a local chmod does not freeze a file's content. */

export interface Attributes {
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly xattrs: ReadonlyMap<string, string>
}

export interface MergedAttributes extends Attributes {
  /** Names of attributes that stay as the device set them. */
  readonly kept: readonly string[]
  /** Names of attributes that both sides changed, differently. */
  readonly differing: readonly string[]
}

const NUMBERS = ['mode', 'uid', 'gid'] as const

/**
 * The attributes of a merged path. What the device changed stays, else the image's counts. Pure.
 * @param winner whose body the path gets; decides where both changed an attribute, and where only one side has the path
 * @param prefer whose value counts where both sides changed one attribute differently
 */
export function mergeAttributes(
  old: EtcEntry | undefined,
  local: EtcEntry | undefined,
  image: EtcEntry | undefined,
  winner: EtcEntry,
  prefer: 'local' | 'image',
): MergedAttributes {
  const alone = { ...attributesOf(winner), kept: [], differing: [] }
  if (local === undefined || image === undefined) return alone
  if (old === undefined || old.type !== local.type || old.type !== image.type) return alone
  const kept: string[] = []
  const differing: string[] = []
  const pick = <T>(name: string, was: T, mine: T, theirs: T): T => {
    if (mine === was || mine === theirs) return theirs
    if (theirs === was) {
      kept.push(name)
      return mine
    }
    differing.push(name)
    return prefer === 'local' ? mine : theirs
  }
  const [mode, uid, gid] = NUMBERS.map((name) => pick(name, old[name], local[name], image[name]))
  const xattrs = mergeXattrs(old, local, image, pick)
  return { mode: mode ?? winner.mode, uid: uid ?? winner.uid, gid: gid ?? winner.gid, xattrs, kept, differing }
}

function mergeXattrs(
  old: EtcEntry,
  local: EtcEntry,
  image: EtcEntry,
  pick: <T>(name: string, was: T, mine: T, theirs: T) => T,
): ReadonlyMap<string, string> {
  // A device that cannot read them has no say in them.
  if (local.xattrs === undefined) return image.xattrs ?? new Map()
  const [was, mine, theirs] = [old.xattrs ?? new Map(), local.xattrs, image.xattrs ?? new Map()]
  const merged = new Map<string, string>()
  for (const name of [...new Set([...mine.keys(), ...theirs.keys()])].sort()) {
    const value = pick(`xattr ${name}`, was.get(name), mine.get(name), theirs.get(name))
    if (value !== undefined) merged.set(name, value)
  }
  return merged
}

export function attributesOf({ mode, uid, gid, xattrs }: EtcEntry): Attributes {
  return { mode, uid, gid, xattrs: xattrs ?? new Map() }
}

/** Whether two entries have the same attributes, as far as both are known. Pure. */
export function sameAttributes(one: EtcEntry, other: EtcEntry): boolean {
  // The permission bits of a symlink mean nothing.
  if (one.type !== 'symlink' && one.mode !== other.mode) return false
  if (one.uid !== other.uid || one.gid !== other.gid) return false
  if (one.xattrs === undefined || other.xattrs === undefined) return true
  if (one.xattrs.size !== other.xattrs.size) return false
  return [...one.xattrs].every(([name, value]) => other.xattrs?.get(name) === value)
}
