import { execFileSync, spawnSync } from 'node:child_process'
import { hash } from 'node:crypto'
import { existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { compareUtf8, type Sha256 } from '../../base/bytes.ts'
import { makeTree } from '../../publisher/oci/finish.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../../publisher/tree.ts'
import { env, haveTools, type Item } from './build.ts'

/** Trees for the writer, and the proof that what others see of an image is the tree. */

/** A merged tree of these items; the parents of each must be among them. */
export function treeOf(items: readonly Item[], root: Partial<Item> = {}): MergedTree {
  const contents = new Map<Sha256, Uint8Array>()
  const links = new Map<string, number>()
  for (const { type, target = '' } of items)
    if (type === 'link' && !links.has(target)) links.set(target, links.size + 1)
  const nodes = new Map<string, TreeNode>()
  for (const item of items) if (item.type !== 'link') nodes.set(item.path, nodeOf(item, contents))
  const entries: TreeEntry[] = items.map(({ path, type, target = '' }) => {
    const source = type === 'link' ? target : path
    const node = nodes.get(source)
    if (node === undefined) throw new Error(`no ${source}`)
    const link = links.get(source)
    return { path, node, ...(link === undefined ? {} : { link }) }
  })
  entries.push({ path: '', node: nodeOf({ path: '', type: 'dir', mode: 0o755, ...root }, contents) })
  entries.sort((a, b) => compareUtf8(a.path, b.path))
  const store = {
    read: async function* (digest: Sha256, size: number): AsyncGenerator<Buffer> {
      const bytes = contents.get(digest)
      if (bytes?.length !== size) throw new Error(`no content ${digest} of ${size} bytes`)
      // In pieces that do not fit blocks.
      for (let at = 0; at < size; at += 100_000) yield Buffer.from(bytes.subarray(at, at + 100_000))
    },
  }
  return makeTree(entries, store, { architecture: 'amd64', labels: {} }, [])
}

function nodeOf(item: Item, contents: Map<Sha256, Uint8Array>): TreeNode {
  const { type, mode = 0o644, uid = 0, gid = 0, mtime = 0, rdev = [0, 0], target = '' } = item
  const xattrs = new Map(Object.entries(item.xattrs ?? {}).sort(([a], [b]) => compareUtf8(a, b)))
  const common = { mode: type === 'symlink' ? 0o777 : mode, uid, gid, mtime, xattrs }
  if (type === 'symlink') return { type, target, ...common }
  if (type === 'char' || type === 'block') return { type, rdev, ...common }
  if (type === 'dir' || type === 'fifo') return { type, ...common }
  const bytes = item.content ?? new Uint8Array(0)
  const content = hash('sha256', bytes) as Sha256
  contents.set(content, bytes)
  return { type: 'file', size: bytes.length, content, ...common }
}

const isRoot = process.getuid?.() === 0

/** Why the kernel of this machine cannot be asked; undefined when it can. */
export function noKernelMount(): string | undefined {
  if (!isRoot) return 'not root'
  if (!existsSync('/dev/loop-control')) return 'no loop devices'
  const known = readFileSync('/proc/filesystems', 'utf8').includes('\tsquashfs\n')
  if (!known) spawnSync('modprobe', ['squashfs'], { env })
  if (!readFileSync('/proc/filesystems', 'utf8').includes('\tsquashfs\n')) return 'no SquashFS in this kernel'
  return undefined
}

/** Mounts an image with the kernel, or with squashfuse, as long as `use` runs. */
export async function mounted(
  image: string,
  by: 'kernel' | 'squashfuse',
  use: (folder: string) => void | Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-mount-'))
  try {
    if (by === 'kernel') execFileSync('mount', ['-t', 'squashfs', '-o', 'loop,ro', image, folder], { env })
    else execFileSync('squashfuse', ['-o', 'allow_other', image, folder], { env })
    try {
      await use(folder)
    } finally {
      execFileSync('umount', [folder], { env })
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** What of an unpacked or mounted image is worth comparing. */
export interface Wanted {
  readonly owners: boolean
  readonly times: boolean
  readonly links: boolean
  readonly xattrs: boolean
}

/** How the tree that stands in `folder` differs from `tree`: one line per difference, none when they are equal. */
export function differences(tree: MergedTree, folder: string, wanted: Wanted): string[] {
  const found: string[] = []
  const inodes = new Map<number, number>()
  const links = new Map<number, number>()
  for (const { link } of tree.entries()) if (link !== undefined) links.set(link, (links.get(link) ?? 0) + 1)
  for (const { path, node, link } of tree.entries()) {
    const full = join(folder, path)
    const is = lstatSync(full)
    const differs = (what: string, a: unknown, b: unknown): void => {
      if (String(a) !== String(b)) found.push(`${path}: ${what} ${a}, not ${b}`)
    }
    differs('type', TYPES[(is.mode >> 12) & 0xf], node.type)
    if (node.type !== 'symlink') differs('mode', is.mode & 0o7777, node.mode)
    if (wanted.owners) differs('owner', [is.uid, is.gid], [node.uid, node.gid])
    if (wanted.times) differs('mtime', is.mtimeMs, node.mtime * 1000)
    if (node.type === 'symlink') differs('target', readlinkSync(full), node.target)
    if (node.type === 'char' || node.type === 'block') differs('rdev', deviceOf(is.rdev), node.rdev)
    if (node.type === 'file') {
      differs('size', is.size, node.size)
      differs('content', hash('sha256', readFileSync(full)), node.content)
    }
    if (node.type === 'dir') {
      const names = tree.children(path).map((child) => child.path.slice(path === '' ? 0 : path.length + 1))
      differs('names', readdirSync(full).sort(compareUtf8), names)
      if (wanted.links) differs('nlink', is.nlink, 2 + tree.children(path).filter((c) => c.node.type === 'dir').length)
    } else if (wanted.links) {
      differs('nlink', is.nlink, link === undefined ? 1 : links.get(link))
      if (link !== undefined) differs('inode', is.ino, inodes.get(link) ?? is.ino)
      if (link !== undefined) inodes.set(link, is.ino)
    }
    if (wanted.xattrs && node.xattrs.size > 0) {
      const should = [...node.xattrs].map(([name, value]) => `${name}=${Buffer.from(value).toString('base64')}`)
      differs('xattrs', xattrsOf(full), should)
    }
  }
  return found
}

const TYPES: Readonly<Record<number, string>> = { 1: 'fifo', 2: 'char', 4: 'dir', 6: 'block', 8: 'file', 10: 'symlink' }

/** As Linux packs it for stat. */
function deviceOf(dev: number): [number, number] {
  return [Math.floor(dev / 256) % 4096, (dev % 256) + Math.floor(dev / 2 ** 20) * 256]
}

function xattrsOf(path: string): string[] {
  const said = execFileSync('getfattr', ['-h', '-d', '-m', '-', '-e', 'base64', '--absolute-names', path], { env })
  return said
    .toString()
    .split('\n')
    .filter((line) => line.includes('=') || /^(user|trusted|security)\./.test(line))
    .filter((line) => !line.startsWith('#'))
    .map((line) => {
      const [name, value = ''] = line.split('=0s')
      return value === '' ? `${name?.replace(/=""$/, '')}=` : `${name}=${value}`
    })
    .sort(compareUtf8)
}

export const haveGetfattr = (): boolean => haveTools('getfattr')
