import { strict as assert } from 'node:assert'
import { sha256 } from '../../../bundle/digest.ts'
import { readHints } from '../../../bundle/hints/format.ts'
import { indexByHints } from '../../../bundle/hints/index-rows.ts'
import { inventoryByHints, planInventory } from '../../../bundle/hints/pages.ts'
import { encodeEntries, hinted, randomEntry } from '../../delta/indexes.ts'
import { randomFrom } from '../../device-install/model.ts'
import { sourceOf } from './signed.ts'

/** Hints beside a bundle of a few chunks: whatever they say, what is made with them is what was signed. */

const random = randomFrom(5)
const chunks = Array.from({ length: 12 }, () => randomEntry(random))
const line = (i: number, mode: number): string => `{"path":"/${i}","type":"file","mode":${mode}}\n`
const lines = (mode: number): string =>
  Array.from({ length: 400 }, (_, i) => line(i, i === 7 ? mode : (i * 7919) % 4096)).join('')
const signed = hinted(encodeEntries(chunks.slice(0, 2)), encodeEntries(chunks), lines(493))
const inventory = Buffer.from(lines(494))
const olds = [encodeEntries(chunks.slice(3, 9))]

export const hintsSeeds = async (): Promise<readonly Uint8Array[]> => [signed.bytes]

export async function fuzzHints(bytes: Uint8Array): Promise<void> {
  const { statement } = signed.release
  const open = { source: sourceOf(bytes), hints: await readHints(sourceOf(bytes), signed.release), grain: 1 }
  for (const image of statement.images) {
    const index = await indexByHints(open, image, olds, () => undefined)
    assert.equal(sha256(index), image.index.sha256)
  }
  const [entry] = statement.attachments
  const plan = entry && planInventory(open, inventory, entry)
  if (entry === undefined || plan === undefined) return
  assert.equal(sha256(await inventoryByHints(open, inventory, entry, plan)), entry.sha256)
}
