import { availableParallelism } from 'node:os'
import { MiB, roundUp, type Sha256 } from '../../base/bytes.ts'
import { type BlockPool, createPool } from '../../bundle/squashfs/pool.ts'
import type { MergedTree } from '../tree.ts'
import { ContentWriter, type FileNode, type StoredFile } from './contents.ts'
import { workerFailed } from './errors.ts'
import { layoutOrder } from './layout.ts'
import { ImageOutput } from './output.ts'
import { planTree } from './plan.ts'
import { encodeHead, PADDING } from './superblock.ts'
import { writeTables } from './tables.ts'

/** The SquashFS 4.0 writer: the same tree and options give the same bytes, whoever writes, when, where and on how many cores. */

export interface SquashfsOptions {
  /** Bytes; a power of two, 4 KiB .. 1 MiB. */
  readonly blockSize: number
  /** zstd level, 1 .. 22. */
  readonly level: number
  /** Seconds since 1970: creation time in the superblock. */
  readonly time: number
  /** Short contents share blocks; true unless told. */
  readonly fragments?: boolean
  /** With the table that lets NFS export it; false unless told. */
  readonly exportable?: boolean
  /** Compression threads; the image's bytes do not depend on it. */
  readonly processors?: number
  readonly signal?: AbortSignal
}

/** Less content than this is compressed before a thread has started. */
const WORTH_THREADS = 4 * MiB

/**
 * Writes `tree` as an image to the file `output`; when that fails, the file is removed. Memory: what the tree itself
 * takes, some 100 bytes per inode, and at most 32 MiB (or 16 blocks) of content under way.
 * @param contentDone called when all content has been taken from the tree and is still being compressed
 * @throws SQUASHFS_IDS, SQUASHFS_ATTRIBUTE, SQUASHFS_LIMIT, SQUASHFS_WRITE, SQUASHFS_WORKER, IMAGE_STORE_FAILED
 */
export async function writeSquashfs(
  tree: MergedTree,
  output: string,
  options: SquashfsOptions,
  contentDone: () => void = () => undefined,
): Promise<void> {
  const {
    blockSize,
    level,
    fragments = true,
    exportable = false,
    processors = availableParallelism(),
    signal,
  } = options
  if (blockSize < 4096 || blockSize > MiB || (blockSize & (blockSize - 1)) !== 0)
    throw new RangeError(`block size ${blockSize}, wanted a power of two from 4096 to ${MiB}`)
  const plan = planTree(tree)
  const order = layoutOrder(tree)
  const bytes = order.reduce((sum, { node }) => sum + node.size, 0)
  const file = await ImageOutput.create(output)
  let pool: BlockPool | undefined
  try {
    pool = createPool(level, bytes < WORTH_THREADS ? 0 : processors, workerFailed)
    // Room for what is known last.
    await file.append(encodeHead(undefined, { blockSize, level, time: options.time }))
    const writer = new ContentWriter(tree, file, pool, { blockSize, fragments, signal })
    const stored = new Map<Sha256, StoredFile>()
    for (const { node, path } of order) stored.set(node.content, await writer.add(node, path))
    contentDone()
    await writer.finish()
    const whereIs = (node: FileNode): StoredFile => stored.get(node.content) ?? EMPTY
    const facts = await writeTables(plan, whereIs, writer.fragments, file, { level, exportable })
    const used = file.position
    await file.append(new Uint8Array(roundUp(used, PADDING) - used))
    await file.finish(encodeHead({ ...facts, used, fragments }, { blockSize, level, time: options.time }))
  } catch (error) {
    await file.abandon()
    throw error
  } finally {
    await pool?.close()
  }
}

const EMPTY: StoredFile = { start: 0, words: new Uint32Array(0), sparse: 0 }
