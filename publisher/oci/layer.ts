import { ByteFeed } from '../tar/feed.ts'
import { checkTarget, show, splitPath } from '../tar/names.ts'
import { type TarEntry, TarReader } from '../tar/reader.ts'
import type { TreeNode } from '../tree.ts'
import { attributesOf, type Finding, sameAttributes } from './attributes.ts'
import { ociErrors } from './errors.ts'
import type { Budget } from './limits.ts'
import type { ContentStore } from './store.ts'

/**
 * One layer as a tree of its own, not yet applied to what lies below.
 *
 * Collecting a layer first makes the outcome independent of the order of its entries: whiteouts and opaque marks act
 * on lower layers only, wherever they stand in the tar (OCI image spec, layer.md).
 */
export class Item {
  /** Undefined: a directory that the layer only implies, or a hard link whose target is not known yet. */
  node: TreeNode | undefined = undefined
  /** Defined for directories only. */
  children: Map<string, Item> | undefined

  constructor(kind: 'dir' | 'leaf', node?: TreeNode) {
    this.children = kind === 'dir' ? new Map() : undefined
    this.node = node
  }
}

// Paths wait as text: taken apart, many deep ones would fill the memory.

/** A hard link whose target must be in a lower layer. */
export interface LowerLink {
  readonly item: Item
  readonly path: string
  readonly target: string
}

/** A path below which, or at which, lower layers are hidden. */
export interface Whiteout {
  /** "" is the root. */
  readonly path: string
  /** True: the directory at `path` is emptied. False: what is at `path` is removed. */
  readonly opaque: boolean
}

export interface Layer {
  readonly root: Item
  readonly whiteouts: readonly Whiteout[]
  readonly lowerLinks: readonly LowerLink[]
}

export interface LayerPolicy {
  /** Device nodes and FIFOs: kept below /dev for now and refused elsewhere; refused everywhere; or kept. */
  readonly devices: 'drop-dev' | 'refuse' | 'keep'
  /** False: names starting with ".wh." are refused. */
  readonly whiteouts: boolean
  readonly clampTime: number | undefined
}

export interface LayerContext {
  readonly budget: Budget
  readonly store: ContentStore
  readonly policy: LayerPolicy
  readonly findings: Finding[]
}

const WHITEOUT = '.wh.'
const OPAQUE = '.wh..wh..opq'

/** Reads a whole layer. Contents go to the store; every refusal names its entry. */
export async function readLayer(
  pieces: AsyncIterable<Uint8Array>,
  context: LayerContext,
  endMark: 'required' | 'optional',
): Promise<Layer> {
  const feed = new ByteFeed(pieces)
  const tar = new TarReader(feed, context.budget, endMark)
  const builder = new LayerBuilder(context)
  try {
    for (let entry = await tar.next(); entry !== undefined; entry = await tar.next()) await builder.add(entry, tar)
    return builder.end()
  } finally {
    await feed.close()
  }
}

/** The item at a path, links not followed; the root at "". */
export function findItem(root: Item, path: string): Item | undefined {
  let item: Item | undefined = root
  for (const part of path === '' ? [] : path.split('/')) item = item?.children?.get(part)
  return item
}

class LayerBuilder {
  readonly #context: LayerContext
  readonly #root = new Item('dir')
  readonly #whiteouts = new Map<string, Whiteout>()
  readonly #lowerLinks = new Map<Item, LowerLink>()

  constructor(context: LayerContext) {
    this.#context = context
  }

  async add(entry: TarEntry, tar: TarReader): Promise<void> {
    const parts = splitPath(entry.name, entry.type === 'dir', this.#context.budget.limits.depth)
    const name = parts.at(-1)
    // Only a directory's name can come out empty.
    if (name === undefined) return this.#directory(this.#root, entry, '')
    if (parts.slice(0, -1).some((part) => part.startsWith(WHITEOUT)))
      throw ociErrors.LAYER_WHITEOUT(`${show(entry.name)} stands below a whiteout`)
    if (name.startsWith(WHITEOUT)) return this.#whiteout(parts, name, entry)
    const siblings = this.#siblings(parts, entry.name)
    const there = siblings.get(name)
    if (there !== undefined && (entry.type !== 'dir' || there.children === undefined)) throw duplicate(entry.name)
    const path = parts.join('/')
    if (entry.type === 'dir') {
      const item = there ?? new Item('dir')
      siblings.set(name, item)
      this.#directory(item, entry, path)
    } else if (entry.type === 'hardlink') siblings.set(name, this.#hardLink(entry, path))
    else siblings.set(name, new Item('leaf', await this.#leaf(entry, tar, path)))
  }

  end(): Layer {
    const lowerLinks = [...this.#lowerLinks.values()]
    for (const { path, target } of lowerLinks)
      if (findItem(this.#root, target) !== undefined)
        throw ociErrors.LAYER_LINK(`the hard link ${show(path)} stands before its target ${show(target)}`)
    return { root: this.#root, whiteouts: [...this.#whiteouts.values()], lowerLinks }
  }

  /** The children of the directory that holds the last of `parts`; made where the layer only implies it. */
  #siblings(parts: readonly string[], name: string): Map<string, Item> {
    let children = childrenOf(this.#root, name)
    for (const part of parts.slice(0, -1)) {
      let next = children.get(part)
      if (next === undefined) {
        // As many as there are parts in a path: a small layer could imply millions.
        this.#context.budget.entry()
        next = new Item('dir')
        children.set(part, next)
      }
      children = childrenOf(next, name)
    }
    return children
  }

  #directory(item: Item, entry: TarEntry, path: string): void {
    const node: TreeNode = { type: 'dir', ...this.#attributes(entry, path) }
    // Archivers repeat directories; saying the same again changes nothing.
    if (item.node !== undefined && !sameAttributes(item.node, node)) throw duplicate(entry.name)
    item.node = node
  }

  async #leaf(entry: TarEntry, tar: TarReader, path: string): Promise<TreeNode> {
    if (entry.type === 'file') {
      const content = await this.#context.store.add(tar, entry.size)
      return { type: 'file', size: entry.size, content, ...this.#attributes(entry, path) }
    }
    if (entry.type === 'symlink') {
      checkTarget(entry.name, entry.link)
      return { type: 'symlink', target: entry.link, ...this.#attributes(entry, path) }
    }
    this.#checkDevice(entry, path)
    if (entry.type === 'char' || entry.type === 'block')
      return { type: entry.type, rdev: entry.rdev, ...this.#attributes(entry, path) }
    return { type: 'fifo', ...this.#attributes(entry, path) }
  }

  #attributes(entry: TarEntry, path: string): ReturnType<typeof attributesOf> {
    return attributesOf(entry, path, this.#context.policy.clampTime, this.#context.findings)
  }

  #checkDevice(entry: TarEntry, path: string): void {
    const policy = this.#context.policy.devices
    if (policy === 'keep' || (policy === 'drop-dev' && path.startsWith('dev/'))) return
    const what = entry.type === 'fifo' ? 'a FIFO' : `the ${entry.type} device ${entry.rdev.join(':')}`
    throw ociErrors.LAYER_DEVICE(`${show(entry.name)} is ${what}`)
  }

  #hardLink(entry: TarEntry, path: string): Item {
    if (entry.link === '') throw ociErrors.LAYER_LINK(`the hard link ${show(entry.name)} has no target`)
    const target = splitPath(entry.link, false, this.#context.budget.limits.depth).join('/')
    const there = findItem(this.#root, target)
    if (there?.node?.type === 'file') return new Item('leaf', there.node)
    // A link to a link whose own target lies below shares that target.
    const first = there === undefined ? undefined : this.#lowerLinks.get(there)
    if (there !== undefined && first === undefined)
      throw ociErrors.LAYER_LINK(`the hard link ${show(entry.name)} leads to ${show(entry.link)}, not a regular file`)
    if (path === target) throw ociErrors.LAYER_LINK(`the hard link ${show(entry.name)} leads to itself`)
    const item = new Item('leaf')
    this.#lowerLinks.set(item, { item, path, target: first?.target ?? target })
    return item
  }

  #whiteout(parts: readonly string[], name: string, entry: TarEntry): void {
    if (!this.#context.policy.whiteouts)
      throw ociErrors.LAYER_WHITEOUT(`${show(entry.name)} has the prefix of whiteouts, which a plain tar does not have`)
    const hidden = name.slice(WHITEOUT.length)
    const opaque = name === OPAQUE
    const plain = hidden !== '' && hidden !== '.' && hidden !== '..' && !hidden.startsWith(WHITEOUT)
    if ((!opaque && !plain) || entry.type !== 'file' || entry.size !== 0)
      throw ociErrors.LAYER_WHITEOUT(`${show(entry.name)} (${entry.type}, ${entry.size} bytes) is not a whiteout`)
    // Not placed in the tree: some writers give whiteouts below what the same layer makes a file.
    const path = [...parts.slice(0, -1), ...(opaque ? [] : [hidden])].join('/')
    const key = parts.join('/')
    if (this.#whiteouts.has(key)) throw duplicate(entry.name)
    this.#whiteouts.set(key, { path, opaque })
  }
}

function childrenOf(item: Item, name: string): Map<string, Item> {
  if (item.children !== undefined) return item.children
  const what = item.node?.type ?? 'hard link'
  throw ociErrors.LAYER_PARENT(`${show(name)} stands below a ${what} of the same layer, wanted a directory`)
}

function duplicate(name: string): Error {
  return ociErrors.LAYER_DUPLICATE(`${show(name)} stands twice in one layer`)
}
