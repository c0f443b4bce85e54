import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { indexFrom, inventoryFrom } from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import type { HintedRelease } from '../../bundle/hints/format.ts'
import { indexByHints } from '../../bundle/hints/index-rows.ts'
import { inventoryByHints, MAX_INVENTORY, planInventory } from '../../bundle/hints/pages.ts'
import type { ReadOptions } from '../../bundle/reader.ts'
import { type AttachmentEntry, IMAGE_NAMES, type ImageEntry } from '../../bundle/types.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import type { OfferedHints, OfferedPatch, PlanCall, Spare, StoredRelease } from './ports.ts'
import { INVENTORY, readSlotIndexBytes, readSlotRelease, slotFolder } from './slot-files.ts'

/**
 * Chunk indexes and inventory of a new release from what the device keeps about those in its slots: the same ones, or made
 * with a patch, or with the hints beside the bundle. Nothing is taken that has not the signed digest; what does not come to
 * it is told, and fetched whole.
 */

interface Kept {
  readonly files: Files
  readonly data: string
}

interface OldRelease {
  readonly folder: string
  readonly stored: StoredRelease
}

/** For the reader of a bundle's head. */
export function keptIndexes(kept: Kept, spare: Spare, signal: AbortSignal): NonNullable<ReadOptions['indexOf']> {
  let olds: readonly OldRelease[] | undefined
  return async (image, release) => {
    olds ??= await releasesOf(kept, spare.running)
    const { offered, hints } = spare
    const read = async (old: OldRelease) => readSlotIndexBytes(kept.files, old.folder, old.stored, image.name)
    for (const old of olds) {
      const same = sameIndex(old.stored, image) ? await read(old) : undefined
      if (same !== undefined) return same
    }

    const side = offered?.head.sides[image.name]
    // A patch from another release is refused as a whole, when all is known.
    const from = olds.find(({ stored }) => stored.facts.digest === offered?.head.from)
    if (offered !== undefined && side !== undefined && side.length > 0 && from !== undefined) {
      const old = await read(from)
      const made = old && (await attempt(offered, async () => indexFrom(side, old, image)))
      if (made !== undefined) return made
    }
    const found = await hints?.of(release, toFetch(release, image, olds, offered))
    if (hints === undefined || found === undefined) return undefined
    const known: Uint8Array[] = []
    for (const old of olds) known.push(...[await read(old)].filter((bytes) => bytes !== undefined))
    return await attempt(hints, () => indexByHints(found, image, known, hints.told, { signal }), signal)
  }
}

async function releasesOf({ files, data }: Kept, running: Slot): Promise<readonly OldRelease[]> {
  const olds: OldRelease[] = []
  for (const slot of [running, otherSlot(running)]) {
    const folder = slotFolder(data, slot)
    const stored = await readSlotRelease(files, folder)
    if (stored !== undefined) olds.push({ folder, stored })
  }
  return olds
}

const sameIndex = ({ statement }: StoredRelease, image: ImageEntry): boolean =>
  statement.images.some(({ name, index }) => name === image.name && index.sha256 === image.index.sha256)

/** Bytes that are to be fetched from this image's index on, without hints. */
function toFetch(
  { statement }: HintedRelease,
  from: ImageEntry,
  olds: readonly OldRelease[],
  offered: OfferedPatch | undefined,
): number {
  const left = statement.images.slice(IMAGE_NAMES.indexOf(from.name))
  const indexes = left
    .filter((image) => image === from || !olds.some(({ stored }) => sameIndex(stored, image)))
    .reduce((sum, { index }) => sum + index.length, 0)
  const inventory = inventoryOf(statement)
  const had = olds.some(({ stored }) => inventoryOf(stored.statement)?.sha256 === inventory?.sha256)
  const patched = (offered?.head.sides.inventory.length ?? 0) > 0
  return indexes + (had || patched ? 0 : (inventory?.length ?? 0))
}

/** An inventory that need not be fetched whole. */
export interface KeptInventory {
  /** Bytes that it takes yet. */
  readonly bytes: number
  /** As stored; undefined when it is not there any more. */
  readonly read: () => Promise<Uint8Array | undefined>
}

/**
 * The inventory of a new release from that of the running one.
 * @param stored what is recorded about the running slot
 * @param offered a patch that was checked
 * @param fetch false: only says what it takes
 */
export async function keptInventory(
  { files, data, stored }: Kept & { readonly stored: StoredRelease | undefined },
  { running, head, hints, signal }: PlanCall,
  offered: OfferedPatch | undefined,
  fetch: boolean,
): Promise<KeptInventory | undefined> {
  const folder = slotFolder(data, running)
  const [entry, next] = [stored && inventoryOf(stored.statement), inventoryOf(head.statement)]
  if (entry === undefined || next === undefined) return undefined
  const read = async (): Promise<Uint8Array | undefined> => {
    // One that cannot be read is no reason to fail: the bundle has the new one.
    const bytes = await files.read(join(folder, INVENTORY), entry.length).catch(() => undefined)
    return bytes !== undefined && sha256(bytes) === entry.sha256 ? bytes : undefined
  }
  const old = await read()
  if (old === undefined) return undefined
  if (entry.sha256 === next.sha256) return { bytes: 0, read }

  const side = offered?.head.sides.inventory
  if (offered !== undefined && side !== undefined && side.length > 0) {
    const made = await attempt(offered, async () => inventoryFrom(side, { entry, stored: old }, next))
    if (made !== undefined) return { bytes: 0, read: async () => made }
  }
  return hints && (await hintedInventory(hints, head, { entry, old }, next, signal, fetch))
}

async function hintedInventory(
  hints: OfferedHints,
  release: HintedRelease,
  { entry, old }: { readonly entry: AttachmentEntry; readonly old: Uint8Array },
  next: AttachmentEntry,
  signal: AbortSignal,
  fetch: boolean,
): Promise<KeptInventory | undefined> {
  const found = await hints.of(release, next.length)
  if (found === undefined || entry.unpacked > MAX_INVENTORY) return undefined
  return await attempt(
    hints,
    async () => {
      const content = decompressExactly(old, entry.unpacked)
      const plan = planInventory(found, content, next)
      if (plan === undefined || !fetch) return plan && { bytes: plan.bytes, read: async () => undefined }
      hints.told(plan.bytes)
      const made = await inventoryByHints(found, content, next, plan, { signal })
      return { bytes: 0, read: async () => made }
    },
    signal,
  )
}

const inventoryOf = ({ attachments }: Pick<StoredRelease['statement'], 'attachments'>): AttachmentEntry | undefined =>
  attachments.find(({ name }) => name === 'inventory')

async function attempt<T>(
  told: Pick<OfferedPatch, 'onRefused'>,
  make: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T | undefined> {
  try {
    return await make()
  } catch (error) {
    if (signal?.aborted === true || !isBistableError(error)) throw error
    told.onRefused(error)
    return undefined
  }
}
