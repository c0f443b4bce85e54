import { readFile } from 'node:fs/promises'
import { crc32 } from 'node:zlib'
import { FILES } from './layout.ts'

/** Makes `boot.scr` from `boot.cmd` and the few facts of a disk and a processor: what `mkimage -T script` would make. */

export const BOOT_CMD = new URL('./boot.cmd', import.meta.url)

export const UBOOT_ARCHES = ['arm64', 'arm', 'x86_64'] as const
export type UbootArch = (typeof UBOOT_ARCHES)[number]

export interface UbootScriptOptions {
  readonly arch: UbootArch
  /** Where the partition `bootstate` starts, bytes; a multiple of 512. */
  readonly bootstateStart: number
  /**
   * Address of free memory, a multiple of 4096: 8 KiB and as much as the board's own environment takes, to which no kernel,
   * initramfs or device tree is loaded. The board's `scriptaddr` serves, because the script runs from a copy. The default
   * is that of QEMU's machines.
   */
  readonly memory?: number
  /** Seconds since 1970, for the header. */
  readonly time?: number
}

interface ArchFacts {
  /** IH_ARCH_*, which U-Boot does not check for scripts. */
  readonly id: number
  readonly memory: number
  readonly boot: string
  /** Settings that this processor's U-Boot lacks. */
  readonly more: readonly string[]
}

// The kernel of a PC unpacks itself over the 64 MiB where U-Boot would put the initramfs.
const ARCHES: Readonly<Record<UbootArch, ArchFacts>> = {
  arm64: {
    id: 22,
    memory: 0x4020_0000,
    boot: 'booti ${kernel_addr_r} ${ramdisk_addr_r}:${bs_size} ${bs_tree}',
    more: [
      'if test -z "${kernel_comp_addr_r}"; then setenv kernel_comp_addr_r 0x50000000; setenv kernel_comp_size 0x4000000; fi',
    ],
  },
  arm: { id: 2, memory: 0x4020_0000, boot: 'bootz ${kernel_addr_r} ${ramdisk_addr_r}:${bs_size} ${bs_tree}', more: [] },
  x86_64: {
    id: 3,
    memory: 0x0f00_0000,
    boot: 'zboot ${kernel_addr_r} 0 ${ramdisk_addr_r} ${bs_size}',
    more: ['setenv kernel_addr_r 0x1000000', 'setenv ramdisk_addr_r 0x10000000'],
  },
}

const SECTOR = 512

/** The settings that stand before `boot.cmd`. Pure. */
export function scriptSettings(options: UbootScriptOptions): string {
  const { boot, more, memory: usual } = ARCHES[options.arch]
  const memory = options.memory ?? usual
  const start = options.bootstateStart
  if (!Number.isSafeInteger(memory) || memory < 0x1000 || memory % 0x1000 !== 0)
    throw new RangeError(`scratch memory must be at a multiple of 4096, not ${memory}`)
  if (!Number.isSafeInteger(start) || start <= 0 || start % SECTOR !== 0)
    throw new RangeError(`the partition must start at a multiple of ${SECTOR}, not ${start}`)
  const hex = (offset: number): string => ((start + offset) / SECTOR).toString(16)
  // Of one length wherever the partition starts: a disk is laid out before this is known.
  const sector = (offset: number): string => hex(offset).padStart(10, '0')
  return [
    // As `part start` says it, without leading zeros; the spaces behind it mean nothing.
    `setenv bs_start ${hex(0).padEnd(10)}`,
    `setenv bs_state0 ${sector(FILES[0].offset)}`,
    `setenv bs_state1 ${sector(FILES[1].offset)}`,
    `setenv bs_reason ${sector(FILES[2].offset)}`,
    `setenv bs_mem 0x${(memory / 0x1000).toString(16)}`,
    `setenv bs_out 0x${(memory / 0x1000 + 1).toString(16)}`,
    ...more,
    `setenv bs_boot '${boot}'`,
    "setenv bs_wait10 'sleep 10'",
    "setenv bs_wait30 'sleep 30'",
    "setenv bs_reset 'reset'",
    '',
  ].join('\n')
}

/** The bytes of boot.scr. */
export async function ubootScript(options: UbootScriptOptions): Promise<Uint8Array> {
  const text = Buffer.concat([Buffer.from(scriptSettings(options)), await readFile(BOOT_CMD)])
  return scriptImage(text, ARCHES[options.arch].id, options.time ?? 0)
}

/** U-Boot's legacy image of one script: 64 bytes of header, a table of one length, the text. U-Boot, include/image.h. */
export function scriptImage(text: Uint8Array, arch: number, time: number): Uint8Array {
  const body = Buffer.alloc(8 + text.length)
  body.writeUInt32BE(text.length, 0)
  body.set(text, 8)
  const header = Buffer.alloc(64)
  header.writeUInt32BE(0x27051956, 0)
  header.writeUInt32BE(time, 8)
  header.writeUInt32BE(body.length, 12)
  header.writeUInt32BE(crc32(body), 24)
  // Linux, this processor, a script, not compressed.
  header.set([5, arch, 6, 0], 28)
  header.write('bistable', 32, 'latin1')
  header.writeUInt32BE(crc32(header), 4)
  return new Uint8Array(Buffer.concat([header, body]))
}
