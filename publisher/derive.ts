import { createReadStream } from 'node:fs'
import { compareUtf8, type Sha256 } from '../base/bytes.ts'
import { publisherErrors } from './errors.ts'
import type { MergedTree, TreeEntry, TreeNode } from './tree.ts'

/** A merged tree with some paths left out and some added: what is built is not always exactly what was merged. */

export interface AddedFile {
  readonly path: string
  readonly node: TreeNode
  /** For a file: its bytes, or where on the host they are. */
  readonly content?: Uint8Array | { readonly file: string }
}

export interface Derivation {
  /** True for a path to leave out; its children must be left out too. */
  readonly drop?: (path: string) => boolean
  readonly add?: readonly AddedFile[]
  /** Seconds since 1970, for parent folders that have to be made. */
  readonly time: number
}

/**
 * Derives a tree. Additions replace files and links of the same path; missing parents are made (root, 0755).
 * @throws IMAGE_PATH_TAKEN when an addition would replace a folder, or its parent is not a folder
 */
export function deriveTree(base: MergedTree, derivation: Derivation): MergedTree {
  const drop = derivation.drop ?? (() => false)
  const byPath = new Map<string, TreeEntry>()
  for (const entry of base.entries()) if (!drop(entry.path)) byPath.set(entry.path, entry)
  const contents = new Map<Sha256, Uint8Array | { readonly file: string }>()
  for (const added of derivation.add ?? []) {
    makeParents(byPath, added.path, derivation.time)
    const old = byPath.get(added.path)
    if (old?.node.type === 'dir' && added.node.type !== 'dir')
      throw publisherErrors.IMAGE_PATH_TAKEN(`/${added.path} is a folder in the image, a file is to be added there`)
    byPath.set(added.path, { path: added.path, node: added.node })
    if (added.node.type === 'file' && added.content !== undefined) contents.set(added.node.content, added.content)
  }
  return treeOf(byPath, base, contents)
}

function makeParents(byPath: Map<string, TreeEntry>, path: string, time: number): void {
  const parts = path.split('/')
  for (let i = 1; i < parts.length; i++) {
    const parent = parts.slice(0, i).join('/')
    const there = byPath.get(parent)
    if (there === undefined)
      byPath.set(parent, {
        path: parent,
        node: { type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: time, xattrs: new Map() },
      })
    else if (there.node.type !== 'dir')
      throw publisherErrors.IMAGE_PATH_TAKEN(
        `/${parent} is a ${there.node.type} in the image, a folder is wanted there`,
      )
  }
}

function treeOf(
  byPath: ReadonlyMap<string, TreeEntry>,
  base: MergedTree,
  contents: ReadonlyMap<Sha256, Uint8Array | { readonly file: string }>,
): MergedTree {
  const sorted = [...byPath.values()].sort((a, b) => compareUtf8(a.path, b.path))
  const childrenOf = new Map<string, TreeEntry[]>()
  for (const entry of sorted) {
    if (entry.path === '') continue
    const parent = parentOf(entry.path)
    const list = childrenOf.get(parent)
    if (list === undefined) childrenOf.set(parent, [entry])
    else list.push(entry)
  }
  return {
    entries: () => sorted,
    get: (path) => byPath.get(path),
    resolve: (path) => resolvePath((p) => byPath.get(p), path),
    children: (path) => childrenOf.get(path) ?? [],
    content: (node) => {
      const own = contents.get(node.content)
      if (own === undefined) return base.content(node)
      return own instanceof Uint8Array ? once(own) : createReadStream(own.file)
    },
    readSmall: async (node, atMost) => {
      const own = contents.get(node.content)
      if (own === undefined || node.size > atMost) return await base.readSmall(node, atMost)
      const pieces: Uint8Array[] = []
      for await (const piece of own instanceof Uint8Array ? once(own) : createReadStream(own.file)) pieces.push(piece)
      return new Uint8Array(Buffer.concat(pieces))
    },
    config: base.config,
    findings: base.findings,
  }
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes
}

function parentOf(path: string): string {
  const slash = path.lastIndexOf('/')
  return slash < 0 ? '' : path.slice(0, slash)
}

/** As Linux: more links than this on one path are a loop. */
const MAX_LINKS = 40

/** Follows `path` as a chroot would; undefined when it leads nowhere or loops. Pure. */
export function resolvePath(get: (path: string) => TreeEntry | undefined, path: string): TreeEntry | undefined {
  let links = 0
  const rest = path.split('/').reverse()
  let at = get('')
  while (rest.length > 0) {
    const part = rest.pop()
    if (part === undefined || part === '' || part === '.') continue
    if (at?.node.type !== 'dir') return undefined
    if (part === '..') {
      at = get(parentOf(at.path))
      continue
    }
    const next = get(at.path === '' ? part : `${at.path}/${part}`)
    if (next?.node.type === 'symlink') {
      links++
      if (links > MAX_LINKS) return undefined
      if (next.node.target.startsWith('/')) at = get('')
      rest.push(...next.node.target.split('/').reverse())
    } else at = next
  }
  return at
}
