import { hash } from 'node:crypto'
import { hex, type Sha256 } from '../base/bytes.ts'
import { spanDigests } from '../base/hash-crew.ts'

/**
 * The one tree: SHA-256 over 4096-byte blocks, no salt, last block zero padded. dm-verity (hash type 1) and fs-verity
 * build the same one. On disk it stands from the root level down to the leaf level, each level padded to 4096 bytes;
 * an image of a single block has no tree at all, its root is the hash of that block.
 */

export const BLOCK = 4096
const DIGEST = 32
const PER_PAGE = BLOCK / DIGEST
/** Pages per piece handed out by `writeTree`: 1 MiB. */
const PAGES_PER_PIECE = 256

export interface TreeLevel {
  /** 0 is the leaf level: digests of the data blocks. */
  readonly level: number
  /** Where this level starts, in bytes from the start of the tree. */
  readonly offset: number
  /** 4096-byte pages of this level. */
  readonly pages: number
}

/** The levels of the tree over `length` bytes, in on-disk order: root level first. Pure. */
export function treeLayout(length: number): readonly TreeLevel[] {
  const counts: number[] = []
  for (let blocks = Math.ceil(length / BLOCK); blocks > 1; ) {
    blocks = Math.ceil(blocks / PER_PAGE)
    counts.push(blocks)
  }
  const levels: TreeLevel[] = []
  let offset = 0
  for (const [level, pages] of [...counts.entries()].reverse()) {
    levels.push({ level, offset, pages })
    offset += pages * BLOCK
  }
  return levels
}

/** Bytes of the tree over `length` bytes; 0 when one block holds them all. */
export function treeSize(length: number): number {
  return treeLayout(length).reduce((sum, level) => sum + level.pages * BLOCK, 0)
}

/** A finished 4096-byte page of the tree; `bytes` is the receiver's to keep. */
export interface TreePage {
  readonly level: number
  readonly index: number
  readonly bytes: Uint8Array
}

export interface FinishedTree {
  readonly root: Sha256
  /** Bytes hashed, before padding. */
  readonly length: number
  readonly treeBytes: number
  /** The tree in on-disk order, in pieces of at most 1 MiB. Not available when pages went to `onPage`. */
  writeTree(): Iterable<Uint8Array>
}

export interface TreeHasher {
  update(bytes: Uint8Array): void
  /** Call once, last. */
  finish(): FinishedTree
}

/**
 * Hashes a stream into the tree, whatever the sizes of its pieces. Memory: 1/128 of the length, or a few pages when
 * `onPage` takes each page as it is done (`treeLayout` tells where it belongs).
 */
export function createTreeHasher(options: { readonly onPage?: (page: TreePage) => void } = {}): TreeHasher {
  const levels: LevelState[] = []
  const carry = Buffer.alloc(BLOCK)
  let carried = 0
  let length = 0
  let leaves = 0
  let onlyLeaf: Buffer | undefined

  function levelAt(level: number): LevelState {
    let state = levels[level]
    if (state === undefined) {
      state = { full: [], done: 0, page: Buffer.alloc(BLOCK), used: 0 }
      levels[level] = state
    }
    return state
  }

  function add(level: number, block: Uint8Array): void {
    const state = levelAt(level)
    // latin1 through a string is the fastest way out of the one-shot hash (measured against 'buffer' and 'hex').
    state.page.write(hash('sha256', block, 'binary'), state.used, DIGEST, 'latin1')
    state.used += DIGEST
    if (state.used === BLOCK) closePage(level, state)
  }

  function closePage(level: number, state: LevelState): void {
    const page = state.page
    if (options.onPage === undefined) state.full.push(page)
    else options.onPage({ level, index: state.done, bytes: page })
    state.done++
    state.page = Buffer.alloc(BLOCK)
    state.used = 0
    add(level + 1, page)
  }

  function addBlock(block: Uint8Array): void {
    add(0, block)
    leaves++
    if (leaves === 1) onlyLeaf = Buffer.from(levelAt(0).page.subarray(0, DIGEST))
  }

  /** Whole blocks; two threads share them when they stand where both can see them. */
  function addBlocks(bytes: Uint8Array): void {
    const blocks = bytes.length / BLOCK
    const digests = blocks > PAGES_PER_PIECE ? undefined : spanDigests(bytes, BLOCK_BOUNDS, blocks)
    if (digests !== undefined) addLeaves(digests, blocks)
    else for (let i = 0; i < blocks; i++) addBlock(bytes.subarray(i * BLOCK, (i + 1) * BLOCK))
  }

  /** Digests of whole blocks, as many at once as the page takes. */
  function addLeaves(digests: Buffer, blocks: number): void {
    for (let i = 0; i < blocks; ) {
      const state = levelAt(0)
      const end = Math.min(blocks, i + (BLOCK - state.used) / DIGEST)
      digests.copy(state.page, state.used, i * DIGEST, end * DIGEST)
      if (leaves === 0) onlyLeaf = Buffer.from(digests.subarray(0, DIGEST))
      leaves += end - i
      state.used += (end - i) * DIGEST
      i = end
      if (state.used === BLOCK) closePage(0, state)
    }
  }

  function update(bytes: Uint8Array): void {
    length += bytes.length
    let at = 0
    if (carried > 0) {
      at = Math.min(BLOCK - carried, bytes.length)
      carry.set(bytes.subarray(0, at), carried)
      carried += at
      if (carried < BLOCK) return
      addBlock(carry)
      carried = 0
    }
    const whole = at + Math.floor((bytes.length - at) / BLOCK) * BLOCK
    addBlocks(bytes.subarray(at, whole))
    at = whole
    if (at < bytes.length) {
      carry.set(bytes.subarray(at))
      carried = bytes.length - at
    }
  }

  function finish(): FinishedTree {
    if (carried > 0) {
      addBlock(carry.fill(0, carried))
      carried = 0
    }
    if (onlyLeaf === undefined) throw new RangeError('a tree over nothing has no root')
    return {
      root: leaves === 1 ? (hex(onlyLeaf) as Sha256) : closeLevels(),
      length,
      treeBytes: treeSize(length),
      writeTree: function* () {
        for (const { level, pages } of treeLayout(length)) {
          const stored = levelAt(level).full
          if (stored.length !== pages) throw new RangeError('the pages of this tree went to onPage')
          for (let i = 0; i < pages; i += PAGES_PER_PIECE) yield Buffer.concat(stored.slice(i, i + PAGES_PER_PIECE))
        }
      },
    }
  }

  /** Closes the part-filled page of each level, bottom up, until one page is the whole level: the top. */
  function closeLevels(): Sha256 {
    for (let level = 0; ; level++) {
      const state = levelAt(level)
      if (state.used > 0) closePage(level, state)
      if (state.done === 1) return hex(levelAt(level + 1).page.subarray(0, DIGEST)) as Sha256
    }
  }

  return { update, finish }
}

/** Where blocks begin in a piece of at most 1 MiB, and where the last one ends. */
const BLOCK_BOUNDS = Int32Array.from({ length: PAGES_PER_PIECE + 1 }, (_, i) => i * BLOCK)

interface LevelState {
  readonly full: Buffer[]
  /** Pages closed so far. */
  done: number
  page: Buffer
  /** Bytes used in `page`. */
  used: number
}
