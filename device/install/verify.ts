import { hex, MiB, type Sha256 } from '../../base/bytes.ts'
import { sha256 } from '../../bundle/digest.ts'
import { bundleErrors } from '../../bundle/errors.ts'
import { BLOCK, createTreeHasher, type TreePage, treeLayout } from '../../bundle/tree.ts'
import type { ChunkIndex, ImageEntry } from '../../bundle/types.ts'
import type { SlotDevice } from '../slots/types.ts'
import { createSlotWriter } from '../slots/writer.ts'
import { installErrors } from './errors.ts'
import { devicePieces, throwIfCancelled } from './pieces.ts'

/**
 * Proves from the medium that a slot holds an image and its tree.
 *
 * The root over the image is computed from fresh reads. The tree behind it is then proved from the root down: each
 * page must have the digest that the page above it (or the root) says, so it is the one tree with that root.
 */

const DIGEST = 32

export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined
  /** Image bytes done. */
  readonly onDone?: (done: number) => void
}

/** What is wrong with a slot, or undefined when it holds exactly this image and its tree. Writes nothing. */
export async function slotFault(
  device: SlotDevice,
  image: ImageEntry,
  options: VerifyOptions = {},
): Promise<string | undefined> {
  const { root } = await hashImage(device, image, options, async () => undefined)
  if (root !== image.root) return `${device.name} holds an image with root ${root}, wanted ${image.root}`
  return treeFault(device, image, options.signal)
}

/**
 * Computes the tree from what the medium holds, writes it behind the image, flushes, and proves it from the medium.
 * @throws INSTALL_READBACK_MISMATCH when the medium does not hold what was written; BUNDLE_ROOT_HASH when it does,
 *   and the index contradicts the statement
 */
export async function writeTreeAndVerify(
  device: SlotDevice,
  image: ImageEntry,
  index: ChunkIndex,
  now: () => number,
  options: VerifyOptions,
): Promise<void> {
  const writer = createSlotWriter(device, now)
  const levels = new Map(treeLayout(image.length).map(({ level, offset }) => [level, image.length + offset]))
  let root: Sha256
  try {
    root = (
      await hashImage(device, image, options, async (page) => {
        const start = levels.get(page.level)
        if (start !== undefined) await writer.write(start + page.index * BLOCK, page.bytes)
      })
    ).root
  } catch (error) {
    await writer.finish().catch(() => undefined)
    throw error
  }
  await writer.finish()
  if (root !== image.root) throw await explainMismatch(device, image, index, root, options.signal)
  const fault = await treeFault(device, image, options.signal)
  if (fault !== undefined) throw installErrors.INSTALL_READBACK_MISMATCH(fault)
}

async function hashImage(
  device: SlotDevice,
  image: ImageEntry,
  options: VerifyOptions,
  onPage: (page: TreePage) => Promise<void>,
): Promise<{ readonly root: Sha256 }> {
  const pages: TreePage[] = []
  const hasher = createTreeHasher({ onPage: (page) => pages.push(page) })
  const handOver = async (): Promise<void> => {
    for (const page of pages.splice(0)) await onPage(page)
  }
  let done = 0
  const range = { offset: 0, length: image.length, fresh: true }
  for await (const piece of devicePieces(device, range, options.signal)) {
    hasher.update(piece)
    await handOver()
    done += piece.length
    options.onDone?.(done)
  }
  const { root } = hasher.finish()
  await handOver()
  return { root }
}

/** Checks the tree on the medium from the root down. Memory: one level above the leaves, 1/16384 of the image. */
async function treeFault(
  device: SlotDevice,
  image: ImageEntry,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  let above: Uint8Array = Buffer.from(image.root, 'hex')
  for (const level of treeLayout(image.length)) {
    const range = { offset: image.length + level.offset, length: level.pages * BLOCK, fresh: true }
    const kept = level.level === 0 ? undefined : new Uint8Array(range.length)
    let at = 0
    for await (const piece of devicePieces(device, range, signal)) {
      for (let i = 0; i < piece.length; i += BLOCK) {
        const page = (at + i) / BLOCK
        const wanted = hex(above.subarray(page * DIGEST, (page + 1) * DIGEST))
        if (sha256(piece.subarray(i, i + BLOCK)) !== wanted)
          return `page ${page} of level ${level.level} of the tree on ${device.name} differs from what was written`
      }
      kept?.set(piece, at)
      at += piece.length
    }
    if (kept !== undefined) above = kept
  }
  return undefined
}

/** The root is wrong. Is it the medium, or do index and statement contradict each other? Hashes each chunk to tell. */
async function explainMismatch(
  device: SlotDevice,
  image: ImageEntry,
  index: ChunkIndex,
  root: Sha256,
  signal: AbortSignal | undefined,
): Promise<Error> {
  const buffer = new Uint8Array(MiB)
  for (const chunk of index.chunks) {
    throwIfCancelled(signal)
    const bytes = buffer.subarray(0, chunk.length)
    await device.read(chunk.offset, bytes, { fresh: true })
    if (sha256(bytes) !== chunk.digest)
      return installErrors.INSTALL_READBACK_MISMATCH(
        `bytes ${chunk.offset}..${chunk.offset + chunk.length} of ${device.name} are not what was written and flushed`,
        { details: { slot: device.name, offset: chunk.offset, length: chunk.length } },
      )
  }
  return bundleErrors.BUNDLE_ROOT_HASH(
    `image ${image.name}: the chunks give the root ${root}, the statement says ${image.root}`,
  )
}
