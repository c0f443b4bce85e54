import { gunzipSync } from 'node:zlib'
import binding from 'zstd-napi/binding.js'
import { initramfsErrors } from './errors.ts'

/** Which kernel modules go in, and in which order they load. Pure. */

/** Every one of these must be there or built into the kernel. */
export const REQUIRED_MODULES = ['dm_mod', 'dm_verity', 'sha256_generic', 'squashfs', 'ext4'] as const

/** Linux 6.17 has its SHA-256, for all processors, in a module of another name (commit e96cb9507f2d). */
const RENAMED: Readonly<Record<string, string>> = { sha256_generic: 'sha256' }

/** The names that a wanted module may have, as `moduleName` gives them, in the order in which they are looked for. */
export function namesOfModule(wanted: string): readonly string[] {
  const name = moduleName(wanted)
  const renamed = RENAMED[name]
  return renamed === undefined ? [name] : [name, renamed]
}

/** Taken where the kernel has them: faster digests, and the CRC that ext4 asks for by a name nobody can look up there. */
export const USUAL_MODULES = [
  ...['sha256_ssse3', 'sha256_ni', 'sha256_arm64', 'sha2_ce', 'crc32c_generic', 'crc32c_intel', 'crc32c'],
] as const

/**
 * The disks of common machines and boards, taken where the kernel has them. `init` loads them in this order until the
 * device's disk is there: internal ones first, removable ones last.
 */
export const DISK_MODULES = [
  ...['virtio_pci', 'virtio_blk', 'virtio_mmio', 'virtio_scsi', 'sd_mod', 'ahci', 'nvme'],
  ...['sdhci_pci', 'sdhci_acpi', 'mmc_block', 'xhci_pci', 'ehci_pci', 'usb_storage', 'uas'],
] as const

export interface ModuleTables {
  /** modules.dep */
  readonly dep: string
  /** modules.builtin */
  readonly builtin: string
  /** modules.softdep */
  readonly softdep: string
}

/** The kernel takes `-` and `_` in module names for the same. */
export function moduleName(path: string): string {
  const file = path.slice(path.lastIndexOf('/') + 1)
  return file.replace(/\.ko(?:\.(?:gz|xz|zst))?$/, '').replaceAll('-', '_')
}

/**
 * Paths as in modules.dep, each after what it depends on.
 * Throws INITRAMFS_MODULE_MISSING for a required name that the kernel neither has as a module nor built in.
 */
export function loadOrder(tables: ModuleTables, required: readonly string[], usual: readonly string[]): string[] {
  const dependencies = new Map<string, readonly string[]>()
  const paths = new Map<string, string>()
  for (const line of tables.dep.split('\n')) {
    const [path, rest] = line.split(':')
    if (path === undefined || path === '' || rest === undefined) continue
    dependencies.set(
      path,
      rest.split(' ').filter((word) => word !== ''),
    )
    paths.set(moduleName(path), path)
  }
  const builtin = new Set(tables.builtin.split('\n').map(moduleName))
  const before = softDependencies(tables.softdep)
  const order = new Set<string>()
  const visiting = new Set<string>()
  const add = (path: string): void => {
    if (order.has(path) || visiting.has(path)) return
    visiting.add(path)
    for (const name of (before.get(moduleName(path)) ?? []).flatMap(namesOfSoft)) {
      const soft = paths.get(name)
      if (soft !== undefined) add(soft)
    }
    for (const needed of dependencies.get(path) ?? []) add(needed)
    order.add(path)
  }
  const missing: string[] = []
  for (const wanted of required) {
    const names = namesOfModule(wanted)
    const path = names.map((name) => paths.get(name)).find((found) => found !== undefined)
    if (path !== undefined) add(path)
    else if (!names.some((name) => builtin.has(name))) missing.push(moduleName(wanted))
  }
  if (missing.length > 0)
    throw initramfsErrors.INITRAMFS_MODULE_MISSING(`the kernel has no ${missing.join(', no ')}`, {
      details: { missing },
    })
  for (const name of usual.map(moduleName)) {
    const path = paths.get(name)
    if (path !== undefined) add(path)
  }
  return [...order]
}

/** Ciphers and digests are asked for by what they do ("crypto-crc32c"); the module that always can is "crc32c_generic". */
function namesOfSoft(name: string): readonly string[] {
  const bare = name.replace(/^crypto_/, '')
  return [name, `${bare}_generic`]
}

/** "softdep NAME pre: A B post: C": what is to be loaded before NAME. */
function softDependencies(text: string): Map<string, string[]> {
  const before = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const [keyword, name, ...words] = line.trim().split(/\s+/)
    if (keyword !== 'softdep' || name === undefined) continue
    const start = words.indexOf('pre:')
    if (start === -1) continue
    const end = words.indexOf('post:')
    const names = words.slice(start + 1, end > start ? end : undefined).map(moduleName)
    before.set(moduleName(name), [...(before.get(moduleName(name)) ?? []), ...names])
  }
  return before
}

export const MAX_MODULE = 64 * 1024 * 1024

/** A module's plain bytes: the initramfs does not rely on the kernel to unpack them. Throws INITRAMFS_MODULE_DAMAGED. */
export function unpackModule(path: string, bytes: Uint8Array): Uint8Array {
  try {
    if (path.endsWith('.gz')) return gunzipSync(bytes, { maxOutputLength: MAX_MODULE })
    if (path.endsWith('.zst')) return unzstd(bytes)
  } catch (cause) {
    throw initramfsErrors.INITRAMFS_MODULE_DAMAGED(`${path} does not unpack`, { cause })
  }
  if (path.endsWith('.xz'))
    throw initramfsErrors.INITRAMFS_MODULE_DAMAGED(
      `${path} is compressed with xz, which this builder does not unpack`,
      {
        next: 'Unpack the modules in the image (unxz) and run depmod.',
      },
    )
  return bytes
}

/** The zstd program writes the size of a file into its frame; a module without one is refused, as is one too large. */
function unzstd(bytes: Uint8Array): Uint8Array {
  const size = binding.getFrameContentSize(bytes)
  if (size === null || size > MAX_MODULE) throw new RangeError(`an unpacked size of ${size}`)
  const out = new Uint8Array(size)
  if (new binding.DCtx().decompress(out, bytes) !== size) throw new RangeError('it unpacks to another size')
  return out
}
