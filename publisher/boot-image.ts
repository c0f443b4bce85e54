import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodeBootCfg, maxArgs } from '../bootloader/boot-cfg.ts'
import type { ReleaseNumber } from '../bundle/types.ts'
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
  /** As OCI names it. */
  readonly architecture: string
}

/**
 * The bytes of boot.cfg (docs/architecture.md, "Kernel command line"). Pure.
 * @throws BOOT_CFG_INVALID when the kernel arguments are too long
 */
export function bootCfg(facts: BootFacts): Uint8Array {
  const release = `${facts.number.epoch}.${facts.number.counter}`
  const floor = `${facts.securityFloor.epoch}.${facts.securityFloor.counter}`
  const args = [
    `bistable.root=${facts.root}`,
    `bistable.length=${facts.length}`,
    `bistable.floor=${floor}`,
    ...facts.kernelArgs,
  ].join(' ')
  return encodeBootCfg({ release, args }, maxArgs(facts.architecture))
}

export interface BootParts {
  /** Files on the host; `cfg` is boot.cfg's content. */
  readonly kernel: string
  readonly initrd: string
  readonly cfg: Uint8Array
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
