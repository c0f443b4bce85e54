import { compareBytes } from '../base/bytes.ts'
import { createSha256 } from '../bundle/digest.ts'
import type { SquashEntry, Squashfs } from '../bundle/squashfs/image.ts'
import { publisherErrors } from './errors.ts'
import type { MergedTree, TreeEntry } from './tree.ts'

/** The proof that an image holds the merged tree and nothing else: every entry is read back and compared. */

/**
 * The same image, comparing itself with `tree` as it is walked and read. A walk that comes to its end has compared every
 * entry: attributes, links, and the content of every file, whether or not the one who walks reads it.
 * @throws IMAGE_READBACK_DIFFERS from walk and read, naming the first path that differs, and how
 */
export function comparing(tree: MergedTree, image: Squashfs): Squashfs {
  /** Inodes of hard-linked files whose content was compared, and the last one of any file. */
  const compared = new Set<number>()
  let last = -1

  async function* read(entry: SquashEntry): AsyncGenerator<Uint8Array> {
    const hash = createSha256()
    for await (const piece of image.read(entry)) {
      hash.update(piece)
      yield piece
    }
    const node = tree.get(entry.path)?.node
    const digest = hash.finish()
    if (node?.type === 'file' && digest !== node.content)
      throw differs(entry.path, `has content ${digest}, should have ${node.content}`)
    last = entry.inode
    if (entry.nlink > 1) compared.add(entry.inode)
  }

  async function* walk(): AsyncGenerator<SquashEntry> {
    const links = new LinkGroups(tree)
    const wanted = tree.entries()[Symbol.iterator]()
    for await (const entry of image.walk()) {
      const next = wanted.next()
      if (next.done === true) throw differs(entry.path, 'is in the image, not in the merged tree')
      if (next.value.path !== entry.path)
        throw differs(entry.path, `is in the image where /${next.value.path} should be`)
      const reason = compareAttributes(next.value, entry) ?? links.compare(next.value, entry)
      if (reason !== undefined) throw differs(entry.path, reason)
      yield entry
      if (entry.type === 'file' && last !== entry.inode && !compared.has(entry.inode))
        for await (const _ of read(entry));
    }
    const left = wanted.next()
    if (left.done !== true) throw differs(left.value.path, 'is in the merged tree, not in the image')
  }

  return { ...image, walk, read }
}

function differs(path: string, how: string): Error {
  return publisherErrors.IMAGE_READBACK_DIFFERS(`/${path} ${how}`)
}

/** How the attributes differ, or undefined. Pure. */
export function compareAttributes(wanted: TreeEntry, found: SquashEntry): string | undefined {
  const { node } = wanted
  if (node.type !== found.type) return `is a ${found.type}, should be a ${node.type}`
  const numbers = [
    ['mode', found.mode, node.type === 'symlink' ? found.mode : node.mode],
    ['uid', found.uid, node.uid],
    ['gid', found.gid, node.gid],
    ['mtime', found.mtime, node.mtime],
    ['size', found.size, node.type === 'file' ? node.size : 0],
  ] as const
  for (const [name, is, should] of numbers) if (is !== should) return `has ${name} ${is}, should have ${should}`
  if (node.type === 'symlink' && node.target !== found.target) return `points to ${found.target}, not ${node.target}`
  if ((node.type === 'char' || node.type === 'block') && node.rdev.join() !== found.rdev?.join())
    return `is device ${found.rdev?.join()}, should be ${node.rdev.join()}`
  const names = [...node.xattrs.keys()].join()
  if (names !== [...found.xattrs.keys()].join())
    return `has xattrs [${[...found.xattrs.keys()].join()}], should have [${names}]`
  for (const [name, value] of node.xattrs) {
    const is = found.xattrs.get(name)
    if (is === undefined || compareBytes(is, value) !== 0) return `has another value of xattr ${name}`
  }
  return undefined
}

/** Hard links: the same paths must share an inode, and no others. */
class LinkGroups {
  readonly #size = new Map<number, number>()
  readonly #inodeOf = new Map<number, number>()
  readonly #linkOf = new Map<number, number>()

  constructor(tree: MergedTree) {
    for (const { link } of tree.entries()) if (link !== undefined) this.#size.set(link, (this.#size.get(link) ?? 0) + 1)
  }

  compare({ link, node }: TreeEntry, found: SquashEntry): string | undefined {
    if (node.type === 'dir') return undefined
    const links = link === undefined ? 1 : (this.#size.get(link) ?? 1)
    if (found.nlink !== links) return `has ${found.nlink} links, should have ${links}`
    if (link === undefined) return undefined
    const inode = this.#inodeOf.get(link) ?? found.inode
    const group = this.#linkOf.get(found.inode) ?? link
    if (inode !== found.inode || group !== link) return 'is linked with other paths than it should be'
    this.#inodeOf.set(link, inode)
    this.#linkOf.set(inode, link)
    return undefined
  }
}
