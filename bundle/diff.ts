import { compareUtf8 } from '../base/bytes.ts'
import type { Package } from './packages.ts'
import type { InventoryEntry } from './types.ts'

/** What differs between two root file systems. Pure; streams in, streams out. */

/** What of a path differs. `content` of a file, `target` of a symlink, `device` number. */
export type Aspect = 'type' | 'content' | 'target' | 'device' | 'mode' | 'owner' | 'xattrs'

export type FileDifference =
  | { readonly kind: 'added' | 'removed'; readonly entry: InventoryEntry }
  | {
      readonly kind: 'changed'
      readonly aspects: readonly Aspect[]
      readonly before: InventoryEntry
      readonly after: InventoryEntry
    }

type Entries = AsyncIterable<InventoryEntry> | Iterable<InventoryEntry>

/** Every path that differs, in byte order of the paths. Both sides must come in that order. */
export async function* diffFiles(before: Entries, after: Entries): AsyncGenerator<FileDifference> {
  const left = iterate(before)
  const right = iterate(after)
  try {
    let a = await left.next()
    let b = await right.next()
    while (a.done !== true || b.done !== true) {
      const order = a.done === true ? 1 : b.done === true ? -1 : compareUtf8(a.value.path, b.value.path)
      if (order < 0 && a.done !== true) {
        yield { kind: 'removed', entry: a.value }
        a = await left.next()
      } else if (order > 0 && b.done !== true) {
        yield { kind: 'added', entry: b.value }
        b = await right.next()
      } else if (a.done !== true && b.done !== true) {
        const aspects = differingAspects(a.value, b.value)
        if (aspects.length > 0) yield { kind: 'changed', aspects, before: a.value, after: b.value }
        a = await left.next()
        b = await right.next()
      }
    }
  } finally {
    await left.return(undefined)
    await right.return(undefined)
  }
}

async function* iterate(entries: Entries): AsyncGenerator<InventoryEntry> {
  yield* entries
}

/** How two entries of one path differ. */
export function differingAspects(a: InventoryEntry, b: InventoryEntry): Aspect[] {
  const owner = a.uid !== b.uid || a.gid !== b.gid
  const attributes: Aspect[] = [
    ...(a.mode !== b.mode ? (['mode'] as const) : []),
    ...(owner ? (['owner'] as const) : []),
    ...(!sameXattrs(a, b) ? (['xattrs'] as const) : []),
  ]
  if (a.type !== b.type) return ['type', ...attributes]
  return [
    ...(a.digest !== b.digest ? (['content'] as const) : []),
    ...(a.target !== b.target ? (['target'] as const) : []),
    ...(a.rdev?.join() !== b.rdev?.join() ? (['device'] as const) : []),
    ...attributes,
  ]
}

function sameXattrs(a: InventoryEntry, b: InventoryEntry): boolean {
  // Sorted by name on both sides, so equal sets have equal texts.
  return JSON.stringify(a.xattrs ?? {}) === JSON.stringify(b.xattrs ?? {})
}

export interface PackageDifferences {
  readonly added: readonly Package[]
  readonly removed: readonly Package[]
  /** Another version of the same package: up or down is for the reader to judge. */
  readonly changed: readonly { readonly before: Package; readonly after: Package }[]
}

/** Packages are the same by manager, name and architecture. */
export function diffPackages(before: readonly Package[], after: readonly Package[]): PackageDifferences {
  const left = byIdentity(before)
  const right = byIdentity(after)
  const added: Package[] = []
  const removed: Package[] = []
  const changed: { before: Package; after: Package }[] = []
  for (const key of [...new Set([...left.keys(), ...right.keys()])].sort(compareUtf8)) {
    const was = left.get(key) ?? []
    const is = right.get(key) ?? []
    const gone = was.filter((old) => !is.some((other) => other.version === old.version))
    const come = is.filter((other) => !was.some((old) => old.version === other.version))
    const [oldOne, ...moreGone] = gone
    const [newOne, ...moreCome] = come
    if (oldOne !== undefined && newOne !== undefined && moreGone.length === 0 && moreCome.length === 0)
      changed.push({ before: oldOne, after: newOne })
    else {
      removed.push(...gone)
      added.push(...come)
    }
  }
  return { added, removed, changed }
}

function byIdentity(packages: readonly Package[]): Map<string, Package[]> {
  const groups = new Map<string, Package[]>()
  for (const one of packages) {
    const key = `${one.name}\n${one.arch}\n${one.manager}`
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [one])
    else group.push(one)
  }
  return groups
}
