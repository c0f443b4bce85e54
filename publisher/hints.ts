import { nodeFiles } from '../base/durable.ts'
import { type ByteSource, readExactly } from '../base/source.ts'
import { sha256 } from '../bundle/digest.ts'
import { encodeHints } from '../bundle/hints/format.ts'
import { hintsOf } from '../bundle/hints/index-rows.ts'
import { MAX_INVENTORY, pagesOf } from '../bundle/hints/pages.ts'
import type { BundleHead } from '../bundle/types.ts'

/**
 * The hints that stand beside a published bundle: some 35 bytes for a chunk, and the inventory. They follow from the bundle.
 * @param source the bundle, verified
 */
export async function makeHints(source: ByteSource, head: BundleHead): Promise<Uint8Array> {
  const { boot, rootfs } = head.indexBytes
  return encodeHints({
    release: head.digest,
    images: { boot: hintsOf(boot), rootfs: hintsOf(rootfs) },
    ...(await inventoryPages(source, head)),
  })
}

async function inventoryPages(source: ByteSource, { statement, offsets }: BundleHead) {
  const entry = statement.attachments.find(({ name }) => name === 'inventory')
  const at = offsets.attachments.inventory
  if (entry === undefined || at === undefined || entry.unpacked > MAX_INVENTORY) return { library: '', pages: [] }
  return pagesOf(await readExactly(source, at, entry.length), entry)
}

/**
 * Writes hints, unless they are there already. The folder is not flushed.
 * @param by way of this file, which nobody else has; the caller removes it when this fails
 */
export async function writeHints(path: string, hints: Uint8Array, by: string): Promise<void> {
  const present = await nodeFiles.read(path, hints.length).catch(() => undefined)
  if (present !== undefined && sha256(present) === sha256(hints)) return
  await nodeFiles.write(by, hints)
  await nodeFiles.sync(by)
  await nodeFiles.rename(by, path)
}
