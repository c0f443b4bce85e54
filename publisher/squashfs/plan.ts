import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import { squashWriterErrors } from './errors.ts'

/** What follows from the tree alone: inodes, their numbers and links, and the table of owners. Pure. */

const MAX_IDS = 65535
/** What the reader takes (bundle/squashfs/superblock.ts). */
const MAX_INODES = 1 << 24

export interface PlannedInode {
  readonly node: TreeNode
  /** The first of its paths. */
  readonly path: string
  readonly number: number
  /** Paths of a file; of a directory 2 and its subdirectories, as everywhere in Unix. */
  readonly nlink: number
}

export interface PlannedDirectory {
  readonly path: string
  readonly inode: PlannedInode
  /** Number of the directory that it is in; of the root, one more than there are inodes. */
  readonly parent: number
  /** In byte order of the names. An inode with several links is a child of each of its directories. */
  readonly children: readonly { readonly name: string; readonly inode: PlannedInode }[]
}

export interface Plan {
  /**
   * A directory comes behind all directories below it. In this order, each with the inodes of its children that no
   * earlier one has, the inodes are numbered and written; the root's own is the last. So the inodes of one directory
   * stand side by side, in byte order of their names: a listing is one run, and a change touches its neighbourhood.
   */
  readonly directories: readonly PlannedDirectory[]
  readonly inodes: number
  /** Users and groups, ascending. */
  readonly ids: readonly number[]
}

/** @throws SQUASHFS_IDS, SQUASHFS_LIMIT, SQUASHFS_ATTRIBUTE */
export function planTree(tree: MergedTree): Plan {
  const links = new Map<number, number>()
  const ids = new Set<number>()
  for (const { path, node, link } of tree.entries()) {
    if (link !== undefined) links.set(link, (links.get(link) ?? 0) + 1)
    for (const id of [node.uid, node.gid]) {
      if (!Number.isInteger(id) || id < 0 || id > 0xffffffff)
        throw squashWriterErrors.SQUASHFS_ATTRIBUTE(`/${path} belongs to id ${id}, which has no 32 bits`)
      ids.add(id)
    }
    if (ids.size > MAX_IDS)
      throw squashWriterErrors.SQUASHFS_IDS(`more than ${MAX_IDS} user and group ids; /${path} is one too many`)
  }
  const root = tree.get('')
  if (root === undefined) throw new RangeError('the tree has no root directory')

  const linked = new Map<number, PlannedInode>()
  let count = 0
  const plan = (entry: TreeEntry, nlink: number): PlannedInode => {
    if (++count > MAX_INODES) throw squashWriterErrors.SQUASHFS_LIMIT(`more than ${MAX_INODES} inodes`)
    return { node: entry.node, path: entry.path, number: count, nlink }
  }
  const fileOf = (entry: TreeEntry): PlannedInode => {
    if (entry.link === undefined) return plan(entry, 1)
    const known = linked.get(entry.link) ?? plan(entry, links.get(entry.link) ?? 1)
    linked.set(entry.link, known)
    return known
  }
  const drafts: Draft[] = []
  const visit = (path: string): Draft => {
    const entries = tree.children(path)
    const below = new Map<string, Draft>()
    for (const entry of entries) if (entry.node.type === 'dir') below.set(entry.path, visit(entry.path))
    const children = entries.map((entry) => {
      const directory = below.get(entry.path)
      const inode = directory === undefined ? fileOf(entry) : plan(entry, 2 + directory.below.length)
      if (directory !== undefined) directory.inode = inode
      return { name: entry.path.slice(path === '' ? 0 : path.length + 1), inode }
    })
    const draft: Draft = { path, below: [...below.values()], children, inode: undefined, parent: 0 }
    drafts.push(draft)
    return draft
  }
  const top = visit('')
  top.inode = plan(root, 2 + top.below.length)
  top.parent = count + 1
  // From the root down: a directory's parent is set before it is taken over.
  const directories = drafts
    .reverse()
    .map((draft) => planned(draft))
    .reverse()
  return { directories, inodes: count, ids: [...ids].sort((a, b) => a - b) }
}

interface Draft {
  readonly path: string
  readonly below: readonly Draft[]
  readonly children: PlannedDirectory['children']
  /** Known once the directory that it is in is planned. */
  inode: PlannedInode | undefined
  parent: number
}

function planned({ path, below, children, inode, parent }: Draft): PlannedDirectory {
  if (inode === undefined) throw new Error(`the directory '${path}' was left without an inode`)
  for (const directory of below) directory.parent = inode.number
  return { path, inode, parent, children }
}
