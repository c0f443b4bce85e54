import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { indexFrom, inventoryFrom } from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import type { ReadOptions } from '../../bundle/reader.ts'
import type { OfferedPatch, PlanCall, StoredRelease } from './ports.ts'
import { INVENTORY, readSlotIndexBytes, readSlotRelease, slotFolder } from './slot-files.ts'

/**
 * Chunk indexes and inventory of a new release from a patch and from what is kept about the running one. Nothing is taken
 * that has not the signed digest; a side that does not give it is told, and the whole is fetched.
 */

interface Kept {
  readonly files: Files
  readonly data: string
}

/** For the reader of a bundle's head. */
export function patchedIndexes(
  { files, data }: Kept,
  { offered, running }: { readonly offered: OfferedPatch; readonly running: 'a' | 'b' },
): NonNullable<ReadOptions['indexOf']> {
  const folder = slotFolder(data, running)
  return async (image) => {
    const side = offered.head.sides[image.name]
    const stored = side.length === 0 ? undefined : await readSlotRelease(files, folder)
    // A patch from another release is refused as a whole, when all is known.
    if (stored === undefined || stored.facts.digest !== offered.head.from) return undefined
    const old = await readSlotIndexBytes(files, folder, stored, image.name)
    return old && attempt(offered, () => indexFrom(side, old, image))
  }
}

/** The inventory as stored, for a patch that was checked. */
export async function patchedInventory(
  { files, data }: Kept,
  stored: StoredRelease,
  { patch: offered, running, head }: PlanCall,
): Promise<Uint8Array | undefined> {
  const find = ({ attachments }: StoredRelease['statement']) => attachments.find(({ name }) => name === 'inventory')
  const [entry, next] = [find(stored.statement), find(head.statement)]
  if (offered === undefined || offered.head.sides.inventory.length === 0) return undefined
  if (entry === undefined || next === undefined) return undefined
  const old = await files.read(join(slotFolder(data, running), INVENTORY), entry.length)
  if (old === undefined || sha256(old) !== entry.sha256) return undefined
  return attempt(offered, () => inventoryFrom(offered.head.sides.inventory, { entry, stored: old }, next))
}

function attempt(offered: OfferedPatch, make: () => Uint8Array): Uint8Array | undefined {
  try {
    return make()
  } catch (error) {
    if (!isBistableError(error)) throw error
    offered.onRefused(error)
    return undefined
  }
}
