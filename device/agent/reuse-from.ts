import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { deltaErrors } from '../../bundle/delta/errors.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { exact } from '../doors/exact.ts'
import { openFileDoor } from '../doors/file.ts'
import { checkPatch, type Patch } from '../install/patch.ts'
import type { ReuseSource } from '../install/types.ts'
import type { Slots } from './engine-over.ts'
import { type KeptInventory, keptInventory } from './kept-sides.ts'
import type { InstallCall, PlanCall, StoredRelease } from './ports.ts'
import { readEarlierIndex, readSlotIndex, readSlotRelease, slotFolder } from './slot-files.ts'

/** What on the device, and which patch, an install may draw on. */

const kept = <T extends { close(): Promise<void> }>({ opened }: Around, one: T): T => {
  opened.push(one)
  return one
}

export interface Around {
  readonly files: Files
  readonly data: string
  readonly slots: Slots
  readonly opened: { close(): Promise<void> }[]
}

/** The same, with what is recorded about the running slot: three look at it. */
interface AroundRunning extends Around {
  readonly stored: StoredRelease | undefined
}

/** Places whose chunks may serve, best first: the running slot, the other one as it was, bundles that were named. */
async function reuseFrom(
  around: AroundRunning,
  { running, reuse = [], signal }: Pick<InstallCall, 'running' | 'reuse' | 'signal'>,
): Promise<readonly ReuseSource[]> {
  const target = otherSlot(running)
  const before = await readSlotRelease(around.files, slotFolder(around.data, target))
  const sources = [
    ...(await slotReuse(around, running, around.stored)),
    ...(await slotReuse(around, target, before, true)),
  ]
  for (const path of reuse) sources.push(...(await bundleReuse(around, path, signal)))
  return sources
}

async function slotReuse(
  around: Around,
  slot: Slot,
  stored: StoredRelease | undefined,
  overwritten = false,
): Promise<readonly ReuseSource[]> {
  const { files, data, slots } = around
  const folder = slotFolder(data, slot)
  const sources: ReuseSource[] = []
  for (const name of IMAGE_NAMES) {
    const known = stored === undefined ? undefined : await readSlotIndex(files, folder, stored, name)
    const index = known ?? (overwritten ? await readEarlierIndex(files, folder, name) : undefined)
    if (index === undefined) continue
    const device = kept(around, await slots.forReuse(slot, name))
    const moved = overwritten ? { name: `${device.name} (moved)`, overwrittenBy: name } : { name: device.name }
    sources.push({ ...moved, index, device })
  }
  return sources
}

/** A bundle file as a place to find chunks. Its release need not be trusted: every chunk is checked by the new one's. */
async function bundleReuse(around: Around, path: string, signal: AbortSignal): Promise<readonly ReuseSource[]> {
  const source = kept(around, exact(await openFileDoor(path)))
  const { head } = await inspectBundle(source, { signal })
  return IMAGE_NAMES.map((image) => {
    const index = head.indexes[image]
    const { read } = chunkImage(source, head.offsets.data[image], index)
    const device: ReuseSource['device'] = {
      size: index.imageLength,
      read: async (offset, into) => into.set(await read(offset, into.length)),
    }
    return { name: path, index, device }
  })
}

/**
 * Places to find chunks in, the patch if it is one, and what there is of the inventory.
 * @param fetch false: nothing is fetched for it yet
 */
export async function placesFor(
  surroundings: Around,
  call: PlanCall,
  fetch: boolean,
): Promise<{ readonly reuse: readonly ReuseSource[]; readonly patch?: Patch; readonly inventory?: KeptInventory }> {
  const { files, data } = surroundings
  const around = { ...surroundings, stored: await readSlotRelease(files, slotFolder(data, call.running)) }
  const reuse = await reuseFrom(around, call)
  const patch = await patchFrom(around, call)
  const inventory = await keptInventory(around, call, patch && call.patch, fetch)
  return { reuse, ...(patch === undefined ? {} : { patch }), ...(inventory === undefined ? {} : { inventory }) }
}

/** The offered patch, checked as far as its head goes; one that does not fit is refused and nothing more. */
async function patchFrom(around: AroundRunning, call: PlanCall): Promise<Patch | undefined> {
  const { patch: offered, running, head: wanted, signal } = call
  if (offered === undefined) return undefined
  try {
    const { stored } = around
    if (stored === undefined)
      throw deltaErrors.DELTA_WRONG_RELEASE(`nothing is recorded about slot ${running}, from which a patch would lead`)
    const { head } = offered
    checkPatch(head, stored.facts.digest, wanted)
    const place = async (name: ImageName) => {
      const device = kept(around, await around.slots.forReuse(running, name))
      return { device, length: stored.statement.images.find((image) => image.name === name)?.length ?? 0 }
    }
    const from = { boot: await place('boot'), rootfs: await place('rootfs') }
    const { source, onRefused } = offered
    return { source, head, from, onRefused }
  } catch (error) {
    if (signal.aborted || !isBistableError(error)) throw error
    offered.onRefused(error)
    return undefined
  }
}
