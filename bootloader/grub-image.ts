import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pack } from 'tar-stream'
import { bootErrors } from './errors.ts'

/** Builds GRUB's image with `grub.cfg` and every module it needs inside: nothing of GRUB is read from the disk. */

/** What GRUB is built for: UEFI, or the BIOS of a PC. */
export const GRUB_PLATFORMS = ['x86_64-efi', 'arm64-efi', 'i386-pc'] as const
export type GrubPlatform = (typeof GRUB_PLATFORMS)[number]

export interface GrubImageOptions {
  /**
   * Seconds that a menu waits for a person before the device starts by itself, 1 .. 60. 0, the default: no menu and no
   * delay unless Shift is held, because noise on a serial line can press any other key.
   */
  readonly menuSeconds?: number
  /** For production: no menu, whatever key is held. A menu leads to GRUB's command line and to a root shell. */
  readonly closed?: boolean
  /** x86_64-efi without it. */
  readonly platform?: GrubPlatform
  /** GRUB's modules for that platform; without it where grub-mkimage looks itself (/usr/lib/grub/PLATFORM). */
  readonly modules?: string
  /**
   * Drive the first UART (115200) besides the firmware's console. Only for firmware that does not mirror its console
   * there: with one that does (OVMF, most servers) every line would come twice. A PC's BIOS does not: true for i386-pc.
   */
  readonly serial?: boolean
  readonly signal?: AbortSignal
}

/** The script, as it stands in the image. */
export const GRUB_CFG = new URL('./grub.cfg', import.meta.url)

/** What grub.cfg calls, the file systems it reads, and consoles. */
const MODULES = [
  ...['normal', 'configfile', 'loadenv', 'regexp', 'test', 'true', 'echo', 'sleep', 'keystatus', 'search', 'reboot'],
  ...['part_gpt', 'fat', 'ext2', 'tar', 'memdisk', 'linux', 'boot', 'halt', 'search_fs_file', 'minicmd', 'ls'],
  ...['serial', 'terminal', 'all_video', 'gfxterm'],
]
/** What reaches disk and screen. */
const OF_PLATFORM = {
  'x86_64-efi': ['efi_gop'],
  'arm64-efi': ['efi_gop'],
  'i386-pc': ['biosdisk'],
} as const satisfies Record<GrubPlatform, readonly string[]>

/**
 * Writes the image to `outPath`: for UEFI the program (`EFI/BOOT/BOOTX64.EFI`, `BOOTAA64.EFI`), for a BIOS `core.img`
 * (grub-bios.ts puts it on a disk). Same GRUB package and options: same bytes.
 * Throws BOOT_TOOL_MISSING when `grub-mkimage` or its modules are not there (Debian: grub-common, and grub-efi-amd64-bin,
 * grub-efi-arm64-bin or grub-pc-bin).
 */
export async function grubImage(outPath: string, options: GrubImageOptions = {}): Promise<void> {
  const { menuSeconds = 0, closed = false, platform = 'x86_64-efi', modules } = options
  const serial = options.serial ?? platform === 'i386-pc'
  if (!Number.isInteger(menuSeconds) || menuSeconds < 0 || menuSeconds > 60)
    throw new RangeError(`menuSeconds must be 0 .. 60, not ${menuSeconds}`)
  if (closed && menuSeconds > 0) throw new RangeError('a closed image has no menu that waits')
  const settings = [`bs_menu_seconds=${menuSeconds}`, `bs_serial=${serial ? 1 : 0}`, ...(closed ? ['bs_closed=1'] : [])]
  const scratch = await mkdtemp(join(tmpdir(), 'bistable-grub-'))
  try {
    const memdisk = join(scratch, 'memdisk.tar')
    await writeFile(
      memdisk,
      await tarOf([
        ['grub.cfg', await readFile(GRUB_CFG)],
        ['options.cfg', Buffer.from(settings.map((one) => `set ${one}\n`).join(''))],
      ]),
    )
    // The prefix after the memory disk, whose option sets a prefix of its own (/boot/grub).
    const from = modules === undefined ? [] : ['-d', modules]
    const args = ['-O', platform, ...from, '-o', outPath, '-m', memdisk, '-p', '(memdisk)/', ...MODULES]
    await run('grub-mkimage', [...args, ...OF_PLATFORM[platform]], options.signal)
  } finally {
    await rm(scratch, { recursive: true, force: true })
  }
}

async function tarOf(files: readonly (readonly [string, Uint8Array])[]): Promise<Uint8Array> {
  const tar = pack()
  for (const [name, bytes] of files) tar.entry({ name, mode: 0o644, mtime: new Date(0) }, Buffer.from(bytes))
  tar.finalize()
  const pieces: Buffer[] = []
  for await (const piece of tar) pieces.push(Buffer.from(piece as Uint8Array))
  return Buffer.concat(pieces)
}

async function run(program: string, args: readonly string[], signal: AbortSignal | undefined): Promise<void> {
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8', TZ: 'UTC', SOURCE_DATE_EPOCH: '0' },
    ...(signal === undefined ? {} : { signal }),
  })
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-2000)
  })
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  }).catch((cause: unknown) => {
    signal?.throwIfAborted()
    throw bootErrors.BOOT_TOOL_MISSING(`${program} could not be run`, { cause })
  })
  if (code !== 0) throw bootErrors.BOOT_TOOL_MISSING(`${program} ended with ${code}: ${complaint.trim()}`)
}
