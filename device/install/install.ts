import type { DeltaUnit } from '../../bundle/delta/head.ts'
import { treeSize } from '../../bundle/tree.ts'
import { type BundleHead, IMAGE_NAMES, type ImageEntry, type ImageName } from '../../bundle/types.ts'
import { checkFraming } from '../../bundle/verify.ts'
import { slotErrors } from '../slots/errors.ts'
import type { Freshness, SlotDevice } from '../slots/types.ts'
import { createSlotWriter } from '../slots/writer.ts'
import { type FillCounts, type FillJob, fillSlot, type ReuseMap, reuseMap } from './fill.ts'
import { ChunkJournal } from './journal.ts'
import { PatchedChunks } from './patch.ts'
import { throwIfCancelled, unreadable } from './pieces.ts'
import { checkBudget, type InstallPlan, lackingOf, planInstall, unitsFor } from './plan.ts'
import { holdsSample, scanSlot } from './scan.ts'
import type { ImageResult, InstallPhase, InstallProgress, InstallRequest, InstallResult } from './types.ts'
import { slotFault, writeTreeAndVerify } from './verify.ts'

/**
 * Fills the inactive slot and arms it.
 *
 * Order: hash what is there and plan; for each image, make missing chunks true, flush. Then for each, compute the root from the
 * medium and compare it with the signed one; write the tree, flush, prove it from the medium. Then `beforeArm`, then `arm`: the last write of
 * all. Whatever fails or is cancelled before leaves the boot state on the old slot, and what has arrived is kept: the
 * next install goes on from there. Memory is a few MiB, whatever the image.
 *
 * @throws SLOT_…: too small, or the medium failed; BUNDLE_…: the bytes are not the signed ones; TRANSPORT_…: the door
 *   gave up; INSTALL_READBACK_MISMATCH, INSTALL_BUDGET, INSTALL_CANCELLED
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
    const held = {
      boot: await heldChunks(request, images.boot),
      rootfs: await heldChunks(request, images.rootfs),
    }
    const { patch, inventory, hintBytes } = request
    const parts = { head, held, reuse, patch, inventory, hintBytes }
    const plan = planInstall({ source: request.source.name, ...parts })
    checkBudget(plan, request.maxBytes)
    const mayFetch = budget(plan, request.maxBytes)
    const filled: Filled[] = []
    try {
      for (const name of IMAGE_NAMES)
        filled.push(
          await fillImage(request, images[name], guard(request.slot[name]), held[name], {
            reuse,
            units: unitsFor(name, parts),
            mayFetch,
            totals,
          }),
        )
      for (const { verify } of filled) await verify()
    } finally {
      // Whatever failed: the caller closes the devices, so no flush may be under way.
      for (const { flushed } of filled) await flushed.catch(() => undefined)
    }
    const [boot, rootfs] = filled.map(({ result }) => result)
    if (boot === undefined || rootfs === undefined) throw new TypeError('a release has two images')
    const results = { boot, rootfs }
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

/** An image whose chunks are written; its last flush is under way while the next image is filled. */
interface Filled {
  readonly result: ImageResult
  readonly flushed: Promise<void>
  /** Waits for the flush, then proves the image from the medium and writes and proves its tree. */
  readonly verify: () => Promise<void>
}

/** What an image is filled with. */
interface Shared {
  readonly reuse: ReuseMap
  /** Of the patch, for this image. */
  readonly units: readonly DeltaUnit[]
  readonly mayFetch: FillJob['mayFetch']
  readonly totals: { stored: number }
}

async function fillImage(
  request: InstallRequest,
  image: ImageEntry,
  device: SlotDevice,
  held: Uint8Array,
  { reuse, units, mayFetch, totals }: Shared,
): Promise<Filled> {
  const { head, signal } = request
  const now = request.now ?? (() => performance.now())
  const index = head.indexes[image.name]
  const report = (phase: InstallPhase, done: number): void => {
    const progress: InstallProgress = { phase, image: image.name, done, total: image.length, fetched: totals.stored }
    request.onProgress?.(progress)
  }
  const journal = request.journal ?? (() => undefined)
  const verifying = { signal, onDone: (done: number) => report('verify', done) }

  const kept = index.chunks.reduce((sum, chunk, i) => sum + (held[i] === 1 ? chunk.length : 0), 0)
  if (kept === image.length && (await holds(device, image, verifying))) {
    journal(`${image.name} holds ${image.root}`)
    const done = Promise.resolve()
    return { result: { kept, reused: 0, fetched: 0 }, flushed: done, verify: () => done }
  }

  const counts: FillCounts = { reused: 0, fetched: 0, stored: 0, patched: 0 }
  const onFetched = (bytes: number): void => {
    counts.stored += bytes
  }
  const patched =
    request.patch === undefined || units.length === 0
      ? undefined
      : new PatchedChunks(request.patch, image.name, {
          ...{ index, units, signal, onFetched },
          lacking: lackingOf(index, held, image.name, reuse),
        })
  const before = totals.stored
  const writer = createSlotWriter(device, now)
  try {
    await fillSlot({
      source: request.source,
      dataOffset: head.offsets.data[image.name],
      image: image.name,
      index,
      held,
      reuse,
      patched,
      writer,
      signal,
      counts,
      journal: new ChunkJournal(image.name, journal),
      mayFetch,
      onChunk: () => {
        totals.stored = before + counts.stored
        report('fill', kept + counts.reused + counts.patched + counts.fetched)
      },
    })
  } catch (error) {
    // What has arrived is kept, as far as the medium takes it; the reason of the failure is the first one.
    await writer.finish().catch(() => undefined)
    throw error
  } finally {
    await patched?.close()
  }
  const flushed = writer.finish()
  // Its failure is met in `verify`; until then it must not count as unhandled.
  flushed.catch(() => undefined)
  return {
    result: {
      kept,
      reused: counts.reused,
      fetched: counts.fetched,
      ...(patched === undefined ? {} : { patched: counts.patched }),
    },
    flushed,
    verify: async () => {
      await flushed
      await writeTreeAndVerify(device, image, index, now, verifying)
      journal(`${image.name} verified ${image.root}`)
    },
  }
}

/** A tree that cannot be read is written anew, as one that is wrong. */
async function holds(...asked: Parameters<typeof slotFault>): Promise<boolean> {
  return (await slotFault(...asked).then((fault) => fault === undefined, unreadable)) === true
}

/**
 * Says what an install would fetch, by looking at the same places. Writes nothing and fetches nothing.
 * @param slot the inactive slot, open for reading
 * @throws SLOT_TOO_SMALL, INSTALL_BUDGET, INSTALL_CANCELLED, and what reading the slot throws
 */
export async function previewInstall(
  request: Pick<
    InstallRequest,
    'source' | 'head' | 'reuse' | 'patch' | 'inventory' | 'hintBytes' | 'signal' | 'maxBytes' | 'onProgress'
  > & {
    readonly slot: Readonly<Record<ImageName, Pick<SlotDevice, 'name' | 'size' | 'read'>>>
  },
): Promise<InstallPlan> {
  const { head, source, patch, inventory, hintBytes } = request
  const images = imagesOf(head)
  for (const image of IMAGE_NAMES) checkFits(images[image], request.slot[image])
  const held = {
    boot: await heldChunks(request, images.boot),
    rootfs: await heldChunks(request, images.rootfs),
  }
  const reuse = reuseMap(request.reuse ?? [], Object.values(head.indexes))
  const plan = planInstall({ source: source.name, head, held, reuse, patch, inventory, hintBytes })
  checkBudget(plan, request.maxBytes)
  return plan
}

/** From `scanSlot`, unless the source is cheap, its bytes are not counted, and samples promise nothing. */
async function heldChunks(
  request: Pick<InstallRequest, 'head' | 'cheapSource' | 'maxBytes' | 'signal' | 'onProgress'> & {
    readonly slot: Readonly<Record<ImageName, Pick<SlotDevice, 'read'>>>
  },
  { name, length: total }: ImageEntry,
): Promise<Uint8Array> {
  const { cheapSource, maxBytes, signal } = request
  const index = request.head.indexes[name]
  const device = request.slot[name]
  const onDone = (done: number): void => request.onProgress?.({ phase: 'scan', image: name, done, total, fetched: 0 })
  if (cheapSource !== true || maxBytes !== undefined || (await holdsSample(device, index, signal)))
    return scanSlot(device, index, signal, onDone)
  onDone(index.imageLength)
  return new Uint8Array(index.chunks.length)
}

/** Refuses fetching more than was planned and allowed: a place on the device may turn out not to have what it claimed. */
function budget(plan: InstallPlan, maxBytes: number | undefined): FillJob['mayFetch'] {
  let total = plan.total
  return (stored) => {
    total += stored
    checkBudget({ ...plan, total }, maxBytes)
  }
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
      invalidated ??= request.invalidate()
      await invalidated
      await device.write(offset, bytes)
    },
    flush: () => device.flush(),
    close: () => device.close(),
  })
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

function checkFits(image: ImageEntry, device: Pick<SlotDevice, 'name' | 'size'>): void {
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
