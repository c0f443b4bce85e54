import { BLOCK_BYTES } from './grub-block.ts'

/**
 * The boot state partition: a FAT12 file system made once, the same bytes on every device save for three files, each
 * of them one contiguous run at a fixed offset. GRUB finds the files by name; the agent and the initramfs go to the
 * offsets. Nobody changes the file system's own structures afterwards.
 */

export const BOOTSTATE_BYTES = 1024 * 1024

/** Far apart, so that a flash page or erase block that is lost takes one file with it, not two. */
export const FILES = [
  { name: 'state0.env', offset: 256 * 1024 },
  { name: 'state1.env', offset: 512 * 1024 },
  { name: 'reason.env', offset: 768 * 1024 },
] as const
export type FileIndex = 0 | 1 | 2
export const REASON: FileIndex = 2

const SECTOR = 512
const RESERVED = 1
const FATS = 2
const FAT_SECTORS = 6
const ROOT_ENTRIES = 16
const SECTORS = BOOTSTATE_BYTES / SECTOR
const ROOT_SECTOR = RESERVED + FATS * FAT_SECTORS
/** The first sector of cluster 2; one sector a cluster, so cluster numbers run with the sectors. */
const DATA_SECTOR = ROOT_SECTOR + (ROOT_ENTRIES * 32) / SECTOR

/** Bytes of boot sector, both tables and the root directory: what `checkLayout` compares. */
export const METADATA_BYTES = DATA_SECTOR * SECTOR

const clusterAt = (offset: number): number => offset / SECTOR - DATA_SECTOR + 2

/** Boot sector, allocation tables and root directory. Microsoft's FAT specification 1.03, FAT12. */
export function metadata(): Uint8Array {
  const image = Buffer.alloc(METADATA_BYTES)
  image.set([0xeb, 0x3c, 0x90])
  image.write('BISTABLE', 3, 'latin1')
  image.writeUInt16LE(SECTOR, 11)
  image.writeUInt8(1, 13)
  image.writeUInt16LE(RESERVED, 14)
  image.writeUInt8(FATS, 16)
  image.writeUInt16LE(ROOT_ENTRIES, 17)
  image.writeUInt16LE(SECTORS, 19)
  image.writeUInt8(0xf8, 21)
  image.writeUInt16LE(FAT_SECTORS, 22)
  image.writeUInt16LE(32, 24)
  image.writeUInt16LE(2, 26)
  image.writeUInt8(0x80, 36)
  image.writeUInt8(0x29, 38)
  image.writeUInt32LE(0xb157ab1e, 39)
  image.write('NO NAME    FAT12   ', 43, 'latin1')
  image.writeUInt16LE(0xaa55, 510)

  const fat = image.subarray(RESERVED * SECTOR, (RESERVED + FAT_SECTORS) * SECTOR)
  setFat12(fat, 0, 0xff8)
  setFat12(fat, 1, 0xfff)
  const clusters = BLOCK_BYTES / SECTOR
  for (const { offset } of FILES)
    for (let i = 0; i < clusters; i++)
      setFat12(fat, clusterAt(offset) + i, i === clusters - 1 ? 0xfff : clusterAt(offset) + i + 1)
  image.set(fat, (RESERVED + FAT_SECTORS) * SECTOR)

  let at = ROOT_SECTOR * SECTOR
  for (const { name, offset } of FILES) {
    const [base = '', extension = ''] = name.toUpperCase().split('.')
    image.write(base.padEnd(8) + extension.padEnd(3), at, 'latin1')
    image.writeUInt8(0x20, at + 11)
    image.writeUInt8(0x18, at + 12) // base name and extension are shown in lower case
    image.writeUInt16LE(0x21, at + 24) // 1980-01-01, the first date there is
    image.writeUInt16LE(clusterAt(offset), at + 26)
    image.writeUInt32LE(BLOCK_BYTES, at + 28)
    at += 32
  }
  return new Uint8Array(image)
}

function setFat12(fat: Buffer, cluster: number, value: number): void {
  const at = cluster + (cluster >> 1)
  const pair = fat.readUInt16LE(at)
  fat.writeUInt16LE(cluster % 2 === 0 ? (pair & 0xf000) | value : (pair & 0x000f) | (value << 4), at)
}

/** A whole partition image with the given contents of the three files, each 1024 bytes. */
export function layoutImage(contents: readonly [Uint8Array, Uint8Array, Uint8Array]): Uint8Array {
  const image = new Uint8Array(BOOTSTATE_BYTES)
  image.set(metadata())
  for (const [index, { offset }] of FILES.entries()) image.set(contents[index as FileIndex], offset)
  return image
}
