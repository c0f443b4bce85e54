import { treeSize } from '../../bundle/tree.ts'
import { type BundleHead, type ChunkIndex, IMAGE_NAMES, type ImageEntry, type ImageName } from '../../bundle/types.ts'
import { checkFraming } from '../../bundle/verify.ts'
import { slotErrors } from '../slots/errors.ts'
import type { Freshness, SlotDevice } from '../slots/types.ts'
import { createSlotWriter } from '../slots/writer.ts'
import { type FillCounts, fillSlot, type ReuseMap, reuseMap } from './fill.ts'
import { ChunkJournal } from './journal.ts'
import { throwIfCancelled } from './pieces.ts'
import { holdsSample, scanSlot } from './scan.ts'
import type { ImageResult, InstallPhase, InstallProgress, InstallRequest, InstallResult } from './types.ts'
import { slotFault, writeTreeAndVerify } from './verify.ts'

/**
 * Fills the inactive slot and arms it.
 *
 * Order, per image: hash what is there; make missing chunks true; flush; compute the root from the medium and compare it
 * with the signed one; write the tree, flush, prove it from the medium. Then `beforeArm`, then `arm`: the last write of
 * all. Whatever fails or is cancelled before leaves the boot state on the old slot, and what has arrived is kept: the
 * next install goes on from there. Memory is a few MiB, whatever the image.
 *
 * @throws SLOT_…: too small, or the medium failed; BUNDLE_…: the bytes are not the signed ones; TRANSPORT_…: the door
 *   gave up; INSTALL_READBACK_MISMATCH, INSTALL_CANCELLED
 */
export async function install(request: InstallRequest): Promise<InstallResult> {
  const { head, signal } = request
  const images = imagesOf(head)
  for (const image of IMAGE_NAMES) checkFits(images[image], request.slot[image])
  const journal = request.journal ?? (() => undefined)
  let arming = false
  try {
    journal(`install ${head.digest}`)
    await checkFraming(request.source, head, signal === undefined ? {} : { signal })
    const guard = guardWrites(request)
    const reuse = reuseMap(request.reuse ?? [], Object.values(head.indexes))
    const totals = { stored: 0 }
    const results = {
      boot: await installImage(request, images.boot, guard(request.slot.boot), reuse, totals),
      rootfs: await installImage(request, images.rootfs, guard(request.slot.rootfs), reuse, totals),
    }
    throwIfCancelled(signal)
    request.onProgress?.({ phase: 'finish', image: undefined, done: 0, total: 0, fetched: totals.stored })
    await request.beforeArm()
    throwIfCancelled(signal)
    arming = true
    await request.arm()
    journal('armed')
    return { images: results, fetched: totals.stored, freshness: weaker(request.slot) }
  } catch (error) {
    // A door that was stopped by the signal fails in its own words. Once arming has begun, nothing is "cancelled".
    if (!arming) throwIfCancelled(signal)
    throw error
  }
}

async function installImage(
  request: InstallRequest,
  image: ImageEntry,
  device: SlotDevice,
  reuse: ReuseMap,
  totals: { stored: number },
): Promise<ImageResult> {
  const { head, signal } = request
  const now = request.now ?? (() => performance.now())
  const index = head.indexes[image.name]
  const report = (phase: InstallPhase, done: number): void => {
    const progress: InstallProgress = { phase, image: image.name, done, total: image.length, fetched: totals.stored }
    request.onProgress?.(progress)
  }
  const journal = request.journal ?? (() => undefined)
  const verifying = { signal, onDone: (done: number) => report('verify', done) }

  const held = await heldChunks(request, device, index, (done) => report('scan', done))
  const kept = index.chunks.reduce((sum, chunk, i) => sum + (held[i] === 1 ? chunk.length : 0), 0)
  if (kept === image.length && (await slotFault(device, image, verifying)) === undefined) {
    journal(`${image.name} holds ${image.root}`)
    return { kept, reused: 0, fetched: 0 }
  }

  const counts: FillCounts = { reused: 0, fetched: 0, stored: 0 }
  const before = totals.stored
  const writer = createSlotWriter(device, now)
  try {
    await fillSlot({
      source: request.source,
      dataOffset: head.offsets.data[image.name],
      index,
      held,
      reuse,
      writer,
      signal,
      counts,
      journal: new ChunkJournal(image.name, journal),
      onChunk: () => {
        totals.stored = before + counts.stored
        report('fill', kept + counts.reused + counts.fetched)
      },
    })
  } catch (error) {
    // What has arrived is kept, as far as the medium takes it; the reason of the failure is the first one.
    await writer.finish().catch(() => undefined)
    throw error
  }
  await writer.finish()
  await writeTreeAndVerify(device, image, index, now, verifying)
  journal(`${image.name} verified ${image.root}`)
  return { kept, reused: counts.reused, fetched: counts.fetched }
}

/** From `scanSlot`, unless the source is cheap and samples promise nothing. */
async function heldChunks(
  { cheapSource, signal }: InstallRequest,
  device: SlotDevice,
  index: ChunkIndex,
  onDone: (done: number) => void,
): Promise<Uint8Array> {
  if (cheapSource !== true || (await holdsSample(device, index, signal))) return scanSlot(device, index, signal, onDone)
  onDone(index.imageLength)
  return new Uint8Array(index.chunks.length)
}

/** Every write to either device waits until `invalidate` has succeeded, once; so no order of work can forget it. */
function guardWrites(request: InstallRequest): (device: SlotDevice) => SlotDevice {
  let invalidated: Promise<void> | undefined
  return (device) => ({
    name: device.name,
    size: device.size,
    freshness: device.freshness,
    read: (offset, into, options) => device.read(offset, into, options),
    write: async (offset, bytes) => {
      invalidated ??= invalidate(request)
      await invalidated
      await device.write(offset, bytes)
    },
    flush: () => device.flush(),
    close: () => device.close(),
  })
}

async function invalidate(request: InstallRequest): Promise<void> {
  await request.invalidate()
  request.journal?.('slot given up')
}

function imagesOf(head: BundleHead): Readonly<Record<ImageName, ImageEntry>> {
  const find = (name: ImageName): ImageEntry => {
    const image = head.statement.images.find((entry) => entry.name === name)
    // The statement's schema demands both.
    if (image === undefined) throw new TypeError(`the statement names no ${name} image`)
    return image
  }
  return { boot: find('boot'), rootfs: find('rootfs') }
}

function checkFits(image: ImageEntry, device: SlotDevice): void {
  const tree = treeSize(image.length)
  if (image.length + tree > device.size)
    throw slotErrors.SLOT_TOO_SMALL(
      `image ${image.name} takes ${image.length} bytes and its tree ${tree}; ${device.name} has ${device.size} bytes`,
      { details: { image: image.name, length: image.length, tree, slot: device.size } },
    )
}

function weaker(slot: Readonly<Record<ImageName, SlotDevice>>): Freshness {
  const order: readonly Freshness[] = ['cached', 'dropped', 'direct']
  return order.find((freshness) => IMAGE_NAMES.some((image) => slot[image].freshness === freshness)) ?? 'cached'
}
