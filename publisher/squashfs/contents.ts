import type { PackedBlock } from '../../bundle/squashfs/block-codec.ts'
import type { BlockPool } from '../../bundle/squashfs/pool.ts'
import { ociErrors } from '../oci/errors.ts'
import type { MergedTree, TreeNode } from '../tree.ts'
import { endsFragment } from './layout.ts'
import type { ImageOutput } from './output.ts'

/** The data area: blocks of files, and fragment blocks that many short contents share. */

/** In a size word: stored as it is. */
const PLAIN = 1 << 24
/** Content under way at once, in bytes: more than the threads can hold, little beside 512 MiB. */
const UNDER_WAY = 32 * 1024 * 1024
const MIN_UNDER_WAY = 16

export type FileNode = TreeNode & { readonly type: 'file' }

/** Where a content stands in the image, as inodes say it. */
export interface StoredFile {
  /** Of its first block; 0 when it has none. */
  start: number
  /** Size words of its blocks. */
  readonly words: Uint32Array
  readonly fragment?: { readonly index: number; readonly offset: number }
  /** Bytes of blocks that are all zeros, which are not stored. */
  sparse: number
}

/** Where a fragment block stands, and its size word. */
export interface StoredFragment {
  readonly at: number
  readonly word: number
}

export interface ContentOptions {
  readonly blockSize: number
  /** Contents shorter than a block share fragment blocks; else each gets a block of its own. */
  readonly fragments: boolean
  readonly signal?: AbortSignal | undefined
}

interface Pending {
  readonly packed: Promise<PackedBlock>
  readonly place: (at: number, word: number) => void
}

export class ContentWriter {
  readonly #tree: MergedTree
  readonly #output: ImageOutput
  readonly #pool: BlockPool
  readonly #options: ContentOptions
  readonly #zeros: Uint8Array
  readonly #pending: Pending[] = []
  readonly #most: number
  readonly #fragments: StoredFragment[] = []
  #fragmentCount = 0
  #tail: Uint8Array<ArrayBuffer> | undefined
  #tailUsed = 0

  constructor(tree: MergedTree, output: ImageOutput, pool: BlockPool, options: ContentOptions) {
    this.#tree = tree
    this.#output = output
    this.#pool = pool
    this.#options = options
    this.#zeros = new Uint8Array(options.blockSize)
    this.#most = Math.max(MIN_UNDER_WAY, Math.floor(UNDER_WAY / options.blockSize))
  }

  /** Where the fragment blocks stand; all of them once `finish` is done. */
  get fragments(): readonly StoredFragment[] {
    return this.#fragments
  }

  /**
   * Stores a content. Its places are known when `finish` is done.
   * @param path of a file that has it, for messages
   * @throws IMAGE_STORE_FAILED when it is not as long as its node says; SQUASHFS_WRITE, SQUASHFS_WORKER; what the tree throws
   */
  async add(node: FileNode, path: string): Promise<StoredFile> {
    const { blockSize, fragments } = this.#options
    if (node.size === 0) return { start: 0, words: new Uint32Array(0), sparse: 0 }
    if (fragments && node.size < blockSize) return await this.#addTail(node, path)
    const words = new Uint32Array(Math.ceil(node.size / blockSize))
    const stored: StoredFile = { start: 0, words, sparse: 0 }
    let number = 0
    let first = true
    let block = this.#pool.memory(blockSize)
    let used = 0
    const emit = async (): Promise<void> => {
      const length = used
      used = 0
      const n = number++
      if (Buffer.compare(block.subarray(0, length), this.#zeros.subarray(0, length)) === 0) {
        stored.sparse += length
        return
      }
      const full = block.subarray(0, length)
      block = this.#pool.memory(blockSize)
      const startsHere = first
      first = false
      await this.#submit(full, (at, word) => {
        if (startsHere) stored.start = at
        words[n] = word
      })
    }
    let left = node.size
    for await (let piece of this.#tree.content(node)) {
      left -= piece.length
      if (left < 0) break
      while (piece.length > 0) {
        const part = piece.subarray(0, blockSize - used)
        block.set(part, used)
        used += part.length
        piece = piece.subarray(part.length)
        if (used === blockSize) await emit()
      }
    }
    if (left !== 0) throw wrongLength(path, node.size)
    if (used > 0) await emit()
    return stored
  }

  /** Ends the present fragment block: what comes next starts a new one. */
  async #cut(): Promise<void> {
    const tail = this.#tail
    if (tail === undefined || this.#tailUsed === 0) return
    const index = this.#fragmentCount++
    const content = tail.subarray(0, this.#tailUsed)
    this.#tail = undefined
    this.#tailUsed = 0
    await this.#submit(content, (at, word) => {
      this.#fragments[index] = { at, word }
    })
  }

  /** Writes all that is under way. */
  async finish(): Promise<void> {
    await this.#cut()
    await this.#drain(0)
  }

  async #addTail(node: FileNode, path: string): Promise<StoredFile> {
    const { blockSize } = this.#options
    if (this.#tailUsed + node.size > blockSize || endsFragment(this.#tailUsed, blockSize, path)) await this.#cut()
    const tail = this.#tail ?? this.#pool.memory(blockSize)
    this.#tail = tail
    const offset = this.#tailUsed
    for await (const piece of this.#tree.content(node)) {
      if (this.#tailUsed + piece.length > offset + node.size) throw wrongLength(path, node.size)
      tail.set(piece, this.#tailUsed)
      this.#tailUsed += piece.length
    }
    if (this.#tailUsed !== offset + node.size) throw wrongLength(path, node.size)
    return { start: 0, words: new Uint32Array(0), fragment: { index: this.#fragmentCount, offset }, sparse: 0 }
  }

  /** Gives a block to the threads; blocks are written in the order in which they come here. */
  async #submit(content: Uint8Array<ArrayBuffer>, place: Pending['place']): Promise<void> {
    this.#options.signal?.throwIfAborted()
    const packed = this.#pool.pack(content)
    // Met when its turn comes; a failure before must not count as unhandled.
    packed.catch(() => undefined)
    this.#pending.push({ packed, place })
    await this.#drain(this.#most)
  }

  async #drain(keep: number): Promise<void> {
    while (this.#pending.length > keep) {
      const head = this.#pending.shift()
      if (head === undefined) return
      const { bytes, plain } = await head.packed
      head.place(this.#output.position, bytes.length | (plain ? PLAIN : 0))
      await this.#output.append(bytes)
    }
  }
}

function wrongLength(path: string, size: number): Error {
  return ociErrors.IMAGE_STORE_FAILED(`/${path} does not give the ${size} bytes that it is said to have`)
}
