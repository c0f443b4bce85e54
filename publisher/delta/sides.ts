import { readExactly } from '../../base/source.ts'
import { NO_SIDES, packInventory, packSide, type Sides, type StoredInventory } from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import { bundleErrors } from '../../bundle/errors.ts'
import type { DeltaSide } from './make.ts'

/** What a patch carries besides units: chunk indexes and inventory. @throws BUNDLE_DIGEST, and those of the sources */
export async function sidesOf(from: DeltaSide, to: DeltaSide): Promise<Sides> {
  const index = (image: 'boot' | 'rootfs'): Uint8Array => {
    const next = to.head.indexBytes[image]
    return packSide(next, from.head.indexBytes[image], next.length)
  }
  const [old, next] = [await inventoryOf(from), await inventoryOf(to)]
  const inventory = old === undefined || next === undefined ? NO_SIDES.inventory : packInventory(old, next)
  return { boot: index('boot'), rootfs: index('rootfs'), inventory }
}

async function inventoryOf({ source, head }: DeltaSide): Promise<StoredInventory | undefined> {
  const entry = head.statement.attachments.find(({ name }) => name === 'inventory')
  const at = head.offsets.attachments.inventory
  if (entry === undefined || at === undefined) return undefined
  const stored = await readExactly(source, at, entry.length)
  if (sha256(stored) !== entry.sha256)
    throw bundleErrors.BUNDLE_DIGEST(`the inventory in ${source.name} does not have the signed digest`)
  return { entry, stored }
}
