import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ByteSource } from '../../base/source.ts'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { biosImages } from '../../bootloader/grub-bios.ts'
import { type GrubPlatform, grubImage } from '../../bootloader/grub-image.ts'
import { freshState } from '../../bootloader/machine.ts'
import { ubootBootstateImage } from '../../bootloader/uboot.ts'
import { type UbootArch, ubootScript } from '../../bootloader/uboot-script.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import { imageNeeds } from '../../bundle/state.ts'
import { readChunks, unpackChunk } from '../../bundle/stored.ts'
import { SYSTEM_MAX_BYTES, SYSTEM_PATH } from '../../bundle/system.ts'
import type { BundleHead, ImageEntry, ImageName } from '../../bundle/types.ts'
import { readStored, verifyBundle } from '../../bundle/verify.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { publisherErrors } from '../errors.ts'
import type { DataFile } from './data.ts'
import { type DiskImage, type DiskParts, makeDisk } from './disk.ts'
import { BIOS_START, type DataFileSystem, type DiskPlan, type DiskSizes } from './plan.ts'

/** Which bootloader the disk is for. */
export type DiskBootloader =
  | {
      readonly kind: 'grub'
      readonly menuSeconds?: number
      readonly closed?: boolean
      readonly platform?: GrubPlatform
      /** GRUB's modules for that platform, where they are not where the system keeps them. */
      readonly modules?: string
    }
  | { readonly kind: 'uboot'; readonly arch: UbootArch; readonly memory?: number }

/**
 * A disk image with a bundle's release committed in slot a and slot b empty.
 * @throws the errors of `verifyBundle`, of `makeDisk`, and of the boot program's builder
 */
export async function diskFromBundle(
  bundle: string,
  trusted: TrustedRoots,
  sizes: DiskSizes,
  output: string,
  options: {
    readonly bootloader?: DiskBootloader
    readonly dataFileSystem?: DataFileSystem
    readonly signal?: AbortSignal
  } = {},
): Promise<{ readonly plan: DiskPlan; readonly head: BundleHead }> {
  const source = await fileSource(bundle)
  let made: string | undefined
  try {
    const work = await mkdtemp(join(dirname(output), '.boot-'))
    made = work
    const head = await verifyBundle(source, { trusted }, options)
    const { dataFileSystem = 'ext4' } = options
    if (dataFileSystem === 'btrfs') await requireBtrfs(source, head)
    const time = Date.parse(head.statement.issued) / 1000
    const parts = {
      ...(await bootParts(options.bootloader ?? { kind: 'grub' }, work, time, options.signal)),
      images: { boot: imageOf(source, head, 'boot'), rootfs: imageOf(source, head, 'rootfs') },
      slotFiles: await slotFiles(source, head),
      identity: head.digest,
      dataFileSystem,
      time,
    }
    return { plan: await makeDisk(parts, sizes, output, options), head }
  } finally {
    if (made !== undefined) await rm(made, { recursive: true, force: true })
    await source.close()
  }
}

/** @throws DISK_FILE_SYSTEM when the release does not say that it runs from btrfs */
async function requireBtrfs(source: ByteSource, head: BundleHead): Promise<void> {
  const index = head.indexes.rootfs
  const image = await openSquashfs(chunkImage(source, head.offsets.data.rootfs, index), index.imageLength)
  const system = await image.lookup(SYSTEM_PATH)
  const pieces: Uint8Array[] = []
  if (system !== undefined && system.size <= SYSTEM_MAX_BYTES)
    for await (const piece of image.read(system)) pieces.push(Uint8Array.from(piece))
  const declared = pieces.length === 0 ? undefined : imageNeeds(JSON.parse(Buffer.concat(pieces).toString('utf8')))
  if (declared?.state.btrfs !== true)
    throw publisherErrors.DISK_FILE_SYSTEM('data was to be btrfs; state.btrfs of the release is not true')
}

async function bootParts(
  bootloader: DiskBootloader,
  work: string,
  time: number,
  signal: AbortSignal | undefined,
): Promise<Pick<DiskParts, 'firmware' | 'bootstate' | 'bios'>> {
  if (bootloader.kind === 'uboot') {
    const script = join(work, 'boot.scr')
    return {
      bootstate: ubootBootstateImage(freshState('a')),
      firmware: async (bootstateStart) => {
        await writeFile(script, await ubootScript({ ...bootloader, bootstateStart, time }))
        return [{ name: 'boot.scr', source: script }]
      },
    }
  }
  const grub = join(work, 'grub.img')
  const { platform = 'x86_64-efi', modules } = bootloader
  await grubImage(grub, { ...bootloader, ...(signal === undefined ? {} : { signal }) })
  const bootstate = await bootstateImage(freshState('a'))
  if (platform === 'i386-pc') {
    const bios = await biosImages(await readFile(grub), BIOS_START / 512, modules)
    return { bootstate, bios, firmware: async () => [] }
  }
  const name = platform === 'arm64-efi' ? 'EFI/BOOT/BOOTAA64.EFI' : 'EFI/BOOT/BOOTX64.EFI'
  return { bootstate, firmware: async () => [{ name, source: grub }] }
}

function imageOf(source: ByteSource, head: BundleHead, name: ImageName): DiskImage {
  const entry: ImageEntry | undefined = head.statement.images.find((image) => image.name === name)
  if (entry === undefined) throw new RangeError(`no image ${name}`)
  return {
    length: entry.length,
    root: entry.root,
    content: async function* () {
      for await (const [chunk, stored] of readChunks(source, head.offsets.data[name], head.indexes[name].chunks))
        yield unpackChunk(chunk, stored)
    },
  }
}

/** What the device keeps about the release in a slot (docs/architecture.md, "/data"). */
async function slotFiles(source: ByteSource, head: BundleHead): Promise<readonly DataFile[]> {
  const first = head.trusted.current.version - head.roots.length + 1
  const files: DataFile[] = [
    { path: 'release.json', bytes: head.envelope },
    ...head.roots.map((bytes, i) => ({ path: `roots/${first + i}.json`, bytes })),
    { path: 'boot.idx', bytes: head.indexBytes.boot },
    { path: 'rootfs.idx', bytes: head.indexBytes.rootfs },
  ]
  const inventory = head.statement.attachments.find((attachment) => attachment.name === 'inventory')
  // Checked again: on a second read the file may be another one.
  if (inventory !== undefined)
    files.push({ path: 'inventory.zst', bytes: await readStored(source, head, inventory, {}) })
  return files
}
