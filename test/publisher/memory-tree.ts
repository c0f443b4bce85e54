import { createHash } from 'node:crypto'
import { compareUtf8, type Sha256 } from '../../base/bytes.ts'
import { resolvePath } from '../../publisher/derive.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../../publisher/tree.ts'
import { fakeModule, fakeProgram } from '../helpers/elf.ts'
import { signedRoot } from '../keys/helpers.ts'

/** A merged tree in memory, for tests: paths to contents or to parts of nodes. */

export const TIME = 1_700_000_000

interface Common {
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly mtime?: number
  readonly xattrs?: Readonly<Record<string, Uint8Array>>
}
export type Spec =
  | string
  | Uint8Array
  | ({ readonly type: 'file'; readonly bytes: string | Uint8Array } & Common)
  | ({ readonly type: 'dir' } & Common)
  | { readonly type: 'symlink'; readonly target: string }
  | { readonly type: 'link'; readonly to: string }
  | ({ readonly type: 'fifo' } & Common)

export function memoryTree(specs: Readonly<Record<string, Spec>>): MergedTree {
  const contents = new Map<Sha256, Uint8Array>()
  const entries = new Map<string, TreeEntry>()
  const links = new Map<string, number>()
  const add = (path: string, node: TreeNode, link?: number) =>
    entries.set(path, { path, node, ...(link === undefined ? {} : { link }) })
  for (const path of Object.keys(specs))
    for (const [i, c] of [...path].entries()) if (c === '/') specs = { [path.slice(0, i)]: { type: 'dir' }, ...specs }
  for (const spec of Object.values(specs))
    if (typeof spec === 'object' && 'to' in spec) links.set(spec.to, links.get(spec.to) ?? links.size + 1)
  const node = (spec: Exclude<Spec, { type: 'link' }>): TreeNode => {
    const whole = typeof spec === 'string' || spec instanceof Uint8Array ? { type: 'file' as const, bytes: spec } : spec
    const common: Common = 'target' in whole ? {} : whole
    const shared = {
      uid: common.uid ?? 0,
      gid: common.gid ?? 0,
      mtime: common.mtime ?? TIME,
      xattrs: new Map(Object.entries(common.xattrs ?? {}).sort(([a], [b]) => compareUtf8(a, b))),
    }
    if (whole.type === 'dir') return { type: 'dir', ...shared, mode: common.mode ?? 0o755 }
    if (whole.type === 'fifo') return { type: 'fifo', ...shared, mode: common.mode ?? 0o644 }
    if (whole.type === 'symlink') return { type: 'symlink', target: whole.target, ...shared, mode: 0o777 }
    const bytes = typeof whole.bytes === 'string' ? Buffer.from(whole.bytes) : whole.bytes
    const content = createHash('sha256').update(bytes).digest('hex') as Sha256
    contents.set(content, bytes)
    return { type: 'file', size: bytes.length, content, ...shared, mode: common.mode ?? 0o644 }
  }
  add('', node({ type: 'dir' }))
  for (const [path, spec] of Object.entries(specs))
    if (!(typeof spec === 'object' && 'to' in spec)) add(path, node(spec), links.get(path))
  for (const [path, spec] of Object.entries(specs)) {
    if (!(typeof spec === 'object' && 'to' in spec)) continue
    const target = entries.get(spec.to)
    if (target === undefined) throw new Error(`no ${spec.to}`)
    add(path, target.node, target.link)
  }
  const sorted = [...entries.values()].sort((a, b) => compareUtf8(a.path, b.path))
  const bytesOf = (n: TreeNode & { type: 'file' }): Uint8Array => {
    const bytes = contents.get(n.content)
    if (bytes === undefined) throw new Error(`no content ${n.content}`)
    return bytes
  }
  return {
    entries: () => sorted,
    get: (path) => entries.get(path),
    resolve: (path) => resolvePath((p) => entries.get(p), path),
    children: (path) =>
      sorted.filter((e) => e.path !== '' && e.path.slice(0, Math.max(0, e.path.lastIndexOf('/'))) === path),
    content: async function* (n) {
      yield bytesOf(n)
    },
    readSmall: async (n, atMost) => {
      if (n.size > atMost) throw new RangeError(`${n.size} bytes, at most ${atMost}`)
      return bytesOf(n)
    },
    config: { architecture: 'amd64', labels: {} },
    findings: [],
  }
}

export const VERSION = '6.1.0-test'

/** An x86 kernel header that names `version`. */
export function fakeKernel(version: string): Uint8Array {
  const bytes = Buffer.alloc(20_000, 7)
  bytes.write('HdrS', 0x202, 'latin1')
  bytes.writeUInt16LE(0x1000, 0x20e)
  bytes.write(`${version} (builder) #1 SMP\0`, 0x1200, 'latin1')
  return bytes
}

/** Everything that a fit image has, and little else. */
export async function fitSpecs(): Promise<Record<string, Spec>> {
  const modules = `usr/lib/modules/${VERSION}`
  const program = (bytes: string | Uint8Array): Spec => ({ type: 'file', bytes, mode: 0o755 })
  return {
    ...Object.fromEntries(
      ['data', 'proc', 'sys', 'dev', 'run', 'tmp', 'etc', 'var'].map((name) => [name, { type: 'dir' }] as const),
    ),
    bin: { type: 'symlink', target: 'usr/bin' },
    sbin: { type: 'symlink', target: 'usr/sbin' },
    lib: { type: 'symlink', target: 'usr/lib' },
    [`boot/vmlinuz-${VERSION}`]: fakeKernel(VERSION),
    [`boot/config-${VERSION}`]: 'CONFIG_X=y\n',
    [`${modules}/modules.dep`]:
      'kernel/dm-mod.ko:\nkernel/dm-verity.ko: kernel/dm-mod.ko\nkernel/virtio_blk.ko:\nkernel/overlay.ko:\n',
    [`${modules}/modules.builtin`]:
      'kernel/fs/squashfs/squashfs.ko\nkernel/fs/ext4/ext4.ko\nkernel/crypto/sha256_generic.ko\n',
    [`${modules}/kernel/dm-mod.ko`]: fakeModule(VERSION),
    [`${modules}/kernel/dm-verity.ko`]: fakeModule(VERSION),
    [`${modules}/kernel/virtio_blk.ko`]: fakeModule(VERSION),
    [`${modules}/kernel/overlay.ko`]: fakeModule(VERSION),
    'usr/sbin/init': { type: 'symlink', target: '../lib/systemd/systemd' },
    'usr/lib/systemd/systemd': program('systemd'),
    'usr/lib/systemd/system/multi-user.target.wants/bistable-agent.service': { type: 'symlink', target: '../x' },
    'usr/bin/busybox': program(fakeProgram()),
    'usr/sbin/dmsetup': program(fakeProgram()),
    'usr/bin/bistable': program('#!/bin/sh\n'),
    'usr/lib/bistable/agent/bistable.mjs': 'agent',
    'usr/lib/bistable/agent/node': program('node'),
    'usr/lib/bistable/system.json': JSON.stringify({
      product: 'demo',
      hardware: ['qemu-x86_64'],
      kernelArgs: ['console=ttyS0'],
      writable: ['/opt/app/logs'],
      modules: ['virtio_blk'],
    }),
    'usr/lib/bistable/root.json': await signedRoot({}, [1, 2]),
    'opt/app/logs': { type: 'dir', uid: 1000, gid: 1000 },
    'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/opt/app:/bin/sh\n',
  }
}
