import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodeBootCfg } from '../bootloader/boot-cfg.ts'
import type { ReleaseNumber } from '../bundle/types.ts'
import { publisherErrors } from './errors.ts'
import { makeFat } from './fat.ts'

/** The boot image: kernel, initramfs and the command line that names the root file system's root hash. */

export interface BootFacts {
  readonly number: ReleaseNumber
  readonly securityFloor: ReleaseNumber
  /** Of the rootfs image. */
  readonly root: string
  readonly length: number
  /** The image's own kernel arguments. */
  readonly kernelArgs: readonly string[]
}

/** Linux x86 takes 2047 characters; 256 are left for what grub.cfg adds. */
const MAX_ARGS = 2047 - 256

/**
 * The text of boot.cfg (docs/architecture.md, "Kernel command line"). Pure.
 * @throws SYSTEM_INVALID when the kernel arguments are too long
 */
export function bootCfg(facts: BootFacts): string {
  const release = `${facts.number.epoch}.${facts.number.counter}`
  const floor = `${facts.securityFloor.epoch}.${facts.securityFloor.counter}`
  const args = [
    `bistable.root=${facts.root}`,
    `bistable.length=${facts.length}`,
    `bistable.floor=${floor}`,
    ...facts.kernelArgs,
  ].join(' ')
  if (args.length > MAX_ARGS)
    throw publisherErrors.SYSTEM_INVALID(`the kernel arguments are ${args.length} characters, at most ${MAX_ARGS} fit`)
  return Buffer.from(encodeBootCfg({ release, args })).toString('latin1')
}

export interface BootParts {
  /** Files on the host. */
  readonly kernel: string
  readonly initrd: string
  readonly cfg: string
}

/** Makes the boot image in the new file `output`; returns its size in bytes. The kernel stands first: it changes least. */
export async function makeBootImage(
  parts: BootParts,
  output: string,
  options: { readonly time: number; readonly workDir: string; readonly signal?: AbortSignal },
): Promise<number> {
  const cfg = join(options.workDir, 'boot.cfg')
  await writeFile(cfg, parts.cfg)
  return await makeFat(
    [
      { name: 'vmlinuz', source: parts.kernel },
      { name: 'initrd.img', source: parts.initrd },
      { name: 'boot.cfg', source: cfg },
    ],
    output,
    { ...options, label: 'BISTABLE' },
  )
}
