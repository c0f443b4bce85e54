import { isBistableError } from '../base/errors.ts'
import type { ByteSource } from '../base/source.ts'
import { chunkImage } from '../bundle/chunk-image.ts'
import { openSquashfs, type Squashfs } from '../bundle/squashfs/image.ts'
import type { BundleHead } from '../bundle/types.ts'
import { readElf } from '../initramfs/elf.ts'

/** Whether the programs of an add-on find their shared libraries: in the add-on, or in the release that it lies over. */

/** A program beyond this is not looked into. */
const MAX_PROGRAM = 64 * 1024 * 1024
const ELF = Buffer.from('\x7fELF', 'latin1')

const nameOf = (path: string) => path.slice(path.lastIndexOf('/') + 1)

/** File names of all shared libraries of an image, wherever they are: where a loader looks is the image's own business. */
export async function librariesIn(image: Squashfs): Promise<ReadonlySet<string>> {
  const found = new Set<string>()
  for await (const { path, type } of image.walk())
    if (type !== 'dir' && /\.so(?:\.|$)/.test(path)) found.add(nameOf(path))
  return found
}

/** The same of the root file system in a bundle. */
export async function librariesOfBundle(source: ByteSource, head: BundleHead): Promise<ReadonlySet<string>> {
  const index = head.indexes.rootfs
  return await librariesIn(await openSquashfs(chunkImage(source, head.offsets.data.rootfs, index), index.imageLength))
}

/** What a program needs and neither the add-on nor a release has: sentences. */
export async function lackingLibraries(
  addon: Squashfs,
  releases: readonly { readonly name: string; readonly libraries: ReadonlySet<string> }[],
): Promise<readonly string[]> {
  const own = await librariesIn(addon)
  const lacking: string[] = []
  for await (const entry of addon.walk()) {
    if (entry.type !== 'file' || entry.size < ELF.length || entry.size > MAX_PROGRAM) continue
    const pieces: Uint8Array[] = []
    for await (const piece of addon.read(entry)) {
      // The rest of what is no program is not read.
      if (pieces.length === 0 && !ELF.equals(piece.subarray(0, ELF.length))) break
      pieces.push(Uint8Array.from(piece))
    }
    if (pieces.length === 0) continue
    for (const library of needsOf(Buffer.concat(pieces), entry.path))
      for (const { name, libraries } of releases)
        if (!own.has(library) && !libraries.has(library))
          lacking.push(`${entry.path} needs ${library}, which neither the add-on nor ${name} has`)
  }
  return lacking
}

/** None of what cannot be read: firmware of another processor is an ELF file too. */
function needsOf(program: Uint8Array, path: string): readonly string[] {
  try {
    return readElf(program, path).libraries
  } catch (error) {
    if (!isBistableError(error, 'INITRAMFS_ELF')) throw error
    return []
  }
}
