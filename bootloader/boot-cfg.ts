import { bootErrors } from './errors.ts'

/**
 * `boot.cfg` in the boot image: the release and its kernel arguments, as a GRUB environment block.
 *
 * GRUB's `load_env` only ever assigns the variables it is told to, so nothing in this file can run; U-Boot reads the
 * same text with `env import -t`.
 */

export interface BootCfg {
  /** "EPOCH.COUNTER". */
  readonly release: string
  /** Kernel arguments, starting with the `bistable.*` ones of docs/architecture.md. */
  readonly args: string
}

/** The kernel's COMMAND_LINE_SIZE on x86 and arm64 is 2048, on 32-bit arm 1024; the rest is what the bootloader adds. */
const MAX_ARGS = 1800
const MAX_ARGS_ARM = 776

/** Characters of kernel arguments that fit. @param architecture as OCI names it */
export const maxArgs = (architecture: string): number => (architecture === 'arm' ? MAX_ARGS_ARM : MAX_ARGS)

/**
 * The exact bytes of `boot.cfg`. Throws BOOT_CFG_INVALID on what GRUB would not read back unchanged.
 * @param most characters of arguments
 */
export function encodeBootCfg({ release, args }: BootCfg, most = MAX_ARGS): Uint8Array {
  if (!/^(?:0|[1-9][0-9]{0,14})\.(?:0|[1-9][0-9]{0,14})$/.test(release))
    throw bootErrors.BOOT_CFG_INVALID(`the release is ${JSON.stringify(release)}, EPOCH.COUNTER was wanted`)
  if (!/^[!-[\]-~]+(?: [!-[\]-~]+)*$/.test(args))
    throw bootErrors.BOOT_CFG_INVALID('kernel arguments must be printable ASCII without backslashes, one space apart')
  if (args.length > most)
    throw bootErrors.BOOT_CFG_INVALID(`kernel arguments take ${args.length} characters, at most ${most} fit`, {
      next: "Give fewer or shorter 'kernelArgs' in system.json.",
    })
  if (!/(?:^| )bistable\.root=[0-9a-f]{64}(?: |$)/.test(args))
    throw bootErrors.BOOT_CFG_INVALID('kernel arguments must name the root hash: bistable.root=…')
  return Buffer.from(`# GRUB Environment Block\nbistable_release=${release}\nbistable_args=${args}\n`, 'latin1')
}

/** Reads what `encodeBootCfg` wrote, as it stands in a boot image. Throws BOOT_CFG_INVALID on anything else. */
export function decodeBootCfg(bytes: Uint8Array): BootCfg {
  const match = /^# GRUB Environment Block\nbistable_release=(.*)\nbistable_args=(.*)\n/.exec(
    Buffer.from(bytes).toString('latin1'),
  )
  const found = { release: match?.[1] ?? '', args: match?.[2] ?? '' }
  const made = encodeBootCfg(found)
  if (Buffer.compare(made, bytes.subarray(0, made.length)) !== 0)
    throw bootErrors.BOOT_CFG_INVALID('boot.cfg is not ours')
  return found
}
