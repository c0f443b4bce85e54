import { readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { finishBuild, openBuild } from '../../bundle/build.ts'
import { cutChunks } from '../../bundle/chunks.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import type { AttachmentName } from '../../bundle/types.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import type { Workshop } from '../workshop.ts'
import type { Side } from './found.ts'

/**
 * A bundle that was kept, with the chunks that this program cuts: the images stay, indexes and statement are made anew.
 * @returns whether it had others
 */
export async function recut(workshop: Workshop, { bundle, squashfs }: Side): Promise<boolean> {
  const file = await openImageFile(squashfs)
  const boundaries = await openSquashfs(file, file.size)
    .then((image) => image.contentBoundaries())
    .finally(() => file.close())
  const source = await fileSource(bundle)
  const { indexes } = (await inspectBundle(source).finally(() => source.close())).head
  const ends = indexes.rootfs.chunks.map(({ offset, length }) => offset + length)
  if ([...cutChunks(indexes.rootfs.imageLength, boundaries)].join() === ends.join()) return false

  const folder = dirname(squashfs)
  const { type: _, images: __, attachments: stored, ...release } = (await openBuild(folder)).statement
  const attachments: Partial<Record<AttachmentName, Uint8Array>> = {}
  for (const { name, unpacked } of stored)
    attachments[name] = decompressExactly(await readFile(join(folder, `${name}.zst`)), unpacked)
  await finishBuild(folder, { release, boundaries: { rootfs: boundaries }, attachments })
  for (const path of [bundle, join(folder, 'release.json')]) await rm(path, { force: true })
  await workshop.signAndPack(folder, bundle)
  return true
}
