import { join } from 'node:path'
import { KiB, roundUp } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { type ByteSource, readExactly } from '../../base/source.ts'
import type { Slot } from '../../bootloader/state.ts'
import { decodeIndex, MAX_INDEX_BYTES } from '../../bundle/chunks.ts'
import { sha256 } from '../../bundle/digest.ts'
import { readIndex } from '../../bundle/reader.ts'
import { parseRelease } from '../../bundle/release.ts'
import { type BundleHead, type ChunkIndex, IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { decodeEnvelope, MAX_ENVELOPE_BYTES } from '../../keys/dsse.ts'
import type { Taken } from '../space/biggest.ts'
import type { StoredRelease } from './ports.ts'

/** `/data/bistable/slots/a|b/`: what the device keeps about the content of a slot. */

const BLOCK = 4 * KiB
const RELEASE = 'release.json'
export const INVENTORY = 'inventory.zst'
/** Written by the initramfs when a release starts from the slot (initramfs/state.sh). */
const STATE = 'state'

/**
 * Writes everything a bundle says about a slot. The release comes last: while it is missing, nothing is known about
 * the slot, so a cut in between leaves no mixture.
 * @param known the stored inventory, when it need not be read from the source
 */
export async function storeSlot(
  files: Files,
  folder: string,
  head: BundleHead,
  source: ByteSource,
  signal: AbortSignal,
  known?: Uint8Array,
): Promise<void> {
  await forgetSlot(files, folder)
  await files.makeDir(join(folder, 'roots'))
  const first = head.trusted.current.version - head.trusted.envelopes.length + 1
  const inventory = head.statement.attachments.find((attachment) => attachment.name === 'inventory')
  const at = head.offsets.attachments.inventory
  const store = {
    roots: async () => {
      for (const [i, root] of head.trusted.envelopes.entries())
        await writeFileDurably(join(folder, 'roots', `${first + i}.json`), root, files)
    },
    indexes: async () => {
      for (const name of IMAGE_NAMES) await writeFileDurably(join(folder, `${name}.idx`), head.indexBytes[name], files)
    },
    inventory: async () => {
      if (inventory === undefined || at === undefined) return
      const bytes = known ?? (await readExactly(source, at, inventory.length, { signal }))
      // A door is not believed: what does not have the signed digest is not kept, the bundle is still installable.
      if (sha256(bytes) === inventory.sha256) await writeFileDurably(join(folder, INVENTORY), bytes, files)
    },
  }
  // Side by side: most of it is waiting for flushes. Nothing is under way when one has failed.
  const done = await Promise.allSettled([store.roots(), store.indexes(), store.inventory()])
  for (const one of done) if (one.status === 'rejected') throw one.reason
  await writeFileDurably(join(folder, RELEASE), head.envelope, files)
}

/** What `storeSlot` takes, in whole blocks. */
export function slotFilesSize(head: BundleHead): Taken {
  const inventory = head.statement.attachments.find((attachment) => attachment.name === 'inventory')
  const lengths = [
    head.envelope.length,
    ...head.trusted.envelopes.map((root) => root.length),
    ...IMAGE_NAMES.map((name) => head.indexBytes[name].length),
    inventory?.length ?? 0,
  ]
  // A folder takes a block, and its parent may need a further one to name it.
  const bytes = lengths.reduce((sum, length) => sum + roundUp(length, BLOCK), 4 * BLOCK)
  // Each is written beside the one that it replaces, and the folders.
  return { bytes, files: lengths.length + 4 }
}

/** The index of what a slot held before it was begun to be overwritten: much of it may still be there. */
const earlier = (name: ImageName): string => `${name}.earlier`

/**
 * Before a slot is written: what was known about it is void.
 * @param keepEarlier its indexes stay, as a hint where chunks may still be found
 */
export async function forgetSlot(files: Files, folder: string, keepEarlier = false): Promise<void> {
  await files.makeDir(folder)
  await files.remove(join(folder, RELEASE))
  await files.syncDir(folder)
  for (const name of IMAGE_NAMES) {
    if (!keepEarlier) await files.remove(join(folder, earlier(name)))
    else if ((await files.read(join(folder, `${name}.idx`), MAX_INDEX_BYTES)) !== undefined)
      await files.rename(join(folder, `${name}.idx`), join(folder, earlier(name)))
  }
  await files.removeTree(join(folder, 'roots'))
  for (const name of [...IMAGE_NAMES.map((image) => `${image}.idx`), INVENTORY, STATE])
    await files.remove(join(folder, name))
}

/**
 * The release statement kept for a slot; undefined when there is none or it cannot be read. It was verified before it
 * was kept, and what matters is checked again at boot by dm-verity; here it only names the content.
 */
export async function readSlotRelease(files: Files, folder: string): Promise<StoredRelease | undefined> {
  try {
    const bytes = await files.read(join(folder, RELEASE), MAX_ENVELOPE_BYTES)
    if (bytes === undefined) return undefined
    const { payload } = decodeEnvelope(bytes)
    const statement = parseRelease(payload)
    const { number, version } = statement
    return { facts: { digest: sha256(payload), number, version, committed: false }, statement }
  } catch {
    return undefined
  }
}

/** A chunk index kept for a slot, for reuse; undefined when it is not there or damaged. */
export async function readSlotIndex(
  files: Files,
  folder: string,
  stored: StoredRelease,
  name: ImageName,
): Promise<ChunkIndex | undefined> {
  return (await readVerifiedIndex(files, folder, stored, name))?.index
}

/** Its bytes, verified by the statement kept for the slot. */
export async function readSlotIndexBytes(
  files: Files,
  folder: string,
  stored: StoredRelease,
  name: ImageName,
): Promise<Uint8Array | undefined> {
  return (await readVerifiedIndex(files, folder, stored, name))?.bytes
}

async function readVerifiedIndex(files: Files, folder: string, stored: StoredRelease, name: ImageName) {
  const image = stored.statement.images.find((entry) => entry.name === name)
  if (image === undefined) return undefined
  try {
    const bytes = await files.read(join(folder, `${name}.idx`), Math.min(image.index.length, MAX_INDEX_BYTES))
    return bytes && { bytes, index: readIndex(bytes, image) }
  } catch {
    return undefined
  }
}

/** The index of what the slot held before; a hint from a file that nothing vouches for. Undefined: none, or damaged. */
export async function readEarlierIndex(files: Files, folder: string, name: ImageName): Promise<ChunkIndex | undefined> {
  try {
    const bytes = await files.read(join(folder, earlier(name)), MAX_INDEX_BYTES)
    return bytes === undefined ? undefined : decodeIndex(bytes)
  } catch {
    return undefined
  }
}

export const slotFolder = (data: string, slot: Slot): string => join(data, 'slots', slot)
