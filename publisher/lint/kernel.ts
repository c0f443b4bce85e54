import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import type { Report } from './report.ts'

/** The kernel of an image, and where its modules are. */

export interface Kernel {
  /** "6.1.0-42-amd64": the name of its module folder. */
  readonly version: string
  /** The kernel image itself, links followed. */
  readonly entry: TreeEntry & { readonly node: TreeNode & { readonly type: 'file' } }
}

export function isFile(entry: TreeEntry | undefined): entry is TreeEntry & { node: TreeNode & { type: 'file' } } {
  return entry?.node.type === 'file'
}

const nameOf = (entry: TreeEntry): string => entry.path.slice(entry.path.lastIndexOf('/') + 1)

/**
 * All kernels that stand where distributions put them: /usr/lib/modules/VERSION/vmlinuz, /boot/vmlinuz-VERSION.
 * A kernel that stands in both places under one version counts once. When /boot names no version (Alpine's
 * "vmlinuz-virt") and there is one module folder, that is its version.
 */
export function findKernels(tree: MergedTree): readonly Kernel[] {
  const found = new Map<string, Kernel>()
  const folders = moduleVersions(tree)
  for (const version of folders) {
    const entry = tree.resolve(`usr/lib/modules/${version}/vmlinuz`)
    if (isFile(entry)) found.set(version, { version, entry })
  }
  for (const candidate of tree.children('boot')) {
    const named = /^vmlinuz-(.+)$/.exec(nameOf(candidate))?.[1]
    const entry = tree.resolve(candidate.path)
    if (named === undefined || named.endsWith('.old') || !isFile(entry)) continue
    const only = folders.length === 1 ? folders[0] : undefined
    const version = folders.includes(named) || only === undefined ? named : only
    if (!found.has(version)) found.set(version, { version, entry })
  }
  return [...found.values()]
}

/** Names of the module folders under /lib/modules. */
export function moduleVersions(tree: MergedTree): readonly string[] {
  const folder = tree.resolve('lib/modules') ?? tree.resolve('usr/lib/modules')
  if (folder === undefined) return []
  return tree
    .children(folder.path)
    .filter((entry) => entry.node.type === 'dir')
    .map(nameOf)
}

/** Module names are the same with "-" and "_". */
export const moduleName = (name: string): string => name.replaceAll('-', '_')

/** "kernel/fs/ext4/ext4.ko.xz" -> "ext4". */
export function moduleOfPath(path: string): string | undefined {
  // From the start of the name on: tried from each place, a long line of a damaged table would take hours.
  const name = /^(.+)\.ko(?:\.(?:xz|zst|gz))?$/.exec(path.slice(path.lastIndexOf('/') + 1))?.[1]
  return name === undefined ? undefined : moduleName(name)
}

/** modules.dep: module name -> [its path, paths of what it needs], relative to the module folder. Pure. */
export function parseModulesDep(text: string): ReadonlyMap<string, readonly string[]> {
  const modules = new Map<string, readonly string[]>()
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':')
    if (colon < 0) continue
    const path = line.slice(0, colon)
    const name = moduleOfPath(path)
    if (name !== undefined)
      modules.set(name, [
        path,
        ...line
          .slice(colon + 1)
          .split(' ')
          .filter(Boolean),
      ])
  }
  return modules
}

/** The release that an x86 kernel image names in its own header, or undefined where there is no such header. Pure. */
export function kernelRelease(head: Uint8Array): string | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength)
  // Linux x86 boot protocol: "HdrS" at 0x202; at 0x20e the offset, less 0x200, of a text that begins with the release.
  if (bytes.length < 0x210 || bytes.toString('latin1', 0x202, 0x206) !== 'HdrS') return undefined
  const at = bytes.readUInt16LE(0x20e) + 0x200
  return bytes.toString('latin1', at, at + 256).split(/[\s\0]/)[0]
}

/** Reports what is wrong with the kernel. */
export async function lintKernel(tree: MergedTree, report: Report): Promise<Kernel | undefined> {
  const kernels = findKernels(tree)
  const [kernel, second] = kernels
  if (kernel === undefined) {
    report(
      'error',
      'kernel-missing',
      '/boot',
      'no kernel: neither /boot/vmlinuz-VERSION nor /usr/lib/modules/VERSION/vmlinuz',
    )
    return undefined
  }
  if (second !== undefined) {
    const versions = kernels.map((k) => k.version).join(', ')
    report('error', 'kernel-ambiguous', '/boot', `${kernels.length} kernels (${versions}), exactly one is wanted`)
    return undefined
  }
  const release = kernelRelease(await firstBytes(tree, kernel.entry.node, 64 * 1024))
  if (release !== undefined && release !== kernel.version)
    report(
      'error',
      'kernel-version',
      `/${kernel.entry.path}`,
      `the kernel is ${release}, its modules are ${kernel.version}`,
    )
  return kernel
}

async function firstBytes(tree: MergedTree, node: TreeNode & { type: 'file' }, length: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  let have = 0
  for await (const piece of tree.content(node)) {
    pieces.push(piece)
    have += piece.length
    if (have >= length) break
  }
  return new Uint8Array(Buffer.concat(pieces).subarray(0, length))
}
