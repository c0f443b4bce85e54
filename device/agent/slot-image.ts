import type { Slot } from '../../bootloader/state.ts'
import { openSquashfs, type Squashfs } from '../../bundle/squashfs/image.ts'
import type { ReleaseStatement } from '../../bundle/types.ts'
import type { Slots } from './engine-over.ts'

/** What is open and has to be closed, last first. */
export type Opened = { close(): Promise<void> }[]

export async function closeAll(opened: Opened): Promise<void> {
  for (const one of opened.reverse()) await one.close()
}

/**
 * The root file system in a slot, read without being mounted.
 * @param statement of the release there; without it the partition's size counts: the image says itself how much is its own
 * @throws as `openSquashfs`
 */
export async function openSlotImage(
  slots: Slots,
  slot: Slot,
  statement: ReleaseStatement | undefined,
  opened: Opened,
): Promise<Squashfs> {
  const device = await slots.forReuse(slot, 'rootfs')
  opened.push(device)
  const read = async (offset: number, length: number): Promise<Uint8Array> => {
    const bytes = Buffer.allocUnsafeSlow(length)
    await device.read(offset, bytes, { fresh: false })
    return bytes
  }
  const image = statement?.images.find(({ name }) => name === 'rootfs')
  return await openSquashfs({ read }, image?.length ?? device.size)
}

/** A file of an image, links not followed; undefined when there is none of at most `limit` bytes. */
export async function readImageFile(image: Squashfs, path: string, limit: number): Promise<Uint8Array | undefined> {
  const entry = await image.lookup(path)
  if (entry?.type !== 'file' || entry.size > limit) return undefined
  const pieces: Uint8Array[] = []
  for await (const piece of image.read(entry)) pieces.push(Uint8Array.from(piece))
  return Buffer.concat(pieces)
}
