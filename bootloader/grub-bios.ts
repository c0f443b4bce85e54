import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bootErrors } from './errors.ts'

/**
 * GRUB on a disk that a PC's BIOS starts: `boot.img` in the first sector, which loads `core.img` from a partition of its
 * own (the BIOS boot partition of a GPT). What `grub-install` does to a mounted disk, done to bytes: both images hold
 * addresses in sectors of the disk. The places are those of GRUB's include/grub/i386/pc/boot.h and boot/i386/pc/diskboot.S.
 */

const SECTOR = 512
/** Of the first sector the BIOS's program may have so much: the partition table of a GPT's protective MBR follows. */
export const BIOS_CODE = 440

const BOOT = {
  /** First sector of core.img, 64 bits. */
  kernelSector: 0x5c,
  /** 0xff: the disk that the BIOS says it started from. */
  drive: 0x64,
  /** A jump over the repair of that number, for BIOSes that say it wrong; two NOPs switch the repair on. */
  driveCheck: 0x66,
} as const
/** The last entry of the block list in the first sector of core.img: where its other sectors stand, 64 bits, and how many. */
const LIST = { start: SECTOR - 12, length: SECTOR - 4 } as const

export interface BiosImages {
  /** For the start of sector 0: 440 bytes. */
  readonly code: Uint8Array
  /** For the partition: whole sectors. */
  readonly core: Uint8Array
}

/**
 * @param core `core.img` as grub-mkimage made it
 * @param sector where it will stand on the disk, in sectors of 512 bytes
 * @param modules folder of GRUB's i386-pc files
 * @throws BOOT_TOOL_MISSING without a boot.img
 */
export async function biosImages(
  core: Uint8Array,
  sector: number,
  modules = '/usr/lib/grub/i386-pc',
): Promise<BiosImages> {
  const boot = await readFile(join(modules, 'boot.img')).catch((cause: unknown) => {
    throw bootErrors.BOOT_TOOL_MISSING(`${modules} has no boot.img`, { cause })
  })
  return placeOnDisk(boot, core, sector)
}

/** Pure. @throws RangeError for images that are not GRUB's */
export function placeOnDisk(boot: Uint8Array, core: Uint8Array, sector: number): BiosImages {
  if (boot.length !== SECTOR || core.length < 2 * SECTOR) throw new RangeError('these are not boot.img and core.img')
  const code = Buffer.from(boot)
  code.writeBigUInt64LE(BigInt(sector), BOOT.kernelSector)
  code.writeUInt8(0xff, BOOT.drive)
  code.writeUInt16LE(0x9090, BOOT.driveCheck)
  const whole = Buffer.alloc(Math.ceil(core.length / SECTOR) * SECTOR)
  whole.set(core)
  if (whole.readUInt16LE(LIST.length) !== whole.length / SECTOR - 1)
    throw new RangeError('core.img names another number of sectors than it has')
  whole.writeBigUInt64LE(BigInt(sector + 1), LIST.start)
  return { code: code.subarray(0, BIOS_CODE), core: whole }
}
