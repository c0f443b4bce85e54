import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { compressArchive } from '../initramfs/compress.ts'
import { type CpioEntry, packCpio } from '../initramfs/cpio.ts'
import { loadOrder, moduleName } from '../initramfs/modules.ts'
import { tool } from './measure.ts'

/** The least initramfs that can start the same system: busybox, three modules and what they need, no verity, no data. */

const MODULES = ['virtio_pci', 'virtio_blk', 'squashfs']

/** Takes busybox and the modules from our initramfs, the order of the modules from the root file system's tables. */
export async function makePlainInitrd(options: {
  /** A new scratch folder. */
  readonly folder: string
  /** Our initrd.img. */
  readonly ours: string
  readonly rootfs: string
  /** What is mounted as the root. */
  readonly device: string
  readonly output: string
}): Promise<void> {
  const { folder, ours, rootfs, device, output } = options
  const unpacked = join(folder, 'initramfs')
  await mkdir(unpacked, { recursive: true })
  await tool('sh', ['-c', `zstd -qdc '${ours}' | cpio -idm --quiet`], { cwd: unpacked })
  const tables = join(folder, 'tables')
  const places = ['usr/lib/modules', 'lib/modules']
  const patterns = places.map((place) => `${place}/*/modules.*`)
  await tool('unsquashfs', ['-quiet', '-no-progress', '-d', tables, rootfs, ...patterns])
  const base = places.map((place) => join(tables, place)).find((place) => existsSync(place))
  if (base === undefined) throw new Error('the root file system has no kernel modules')
  const [kernel = ''] = await readdir(base)
  const table = (name: string) => readFile(join(base, kernel, `modules.${name}`), 'utf8').catch(() => '')
  const texts = { dep: await table('dep'), builtin: await table('builtin'), softdep: await table('softdep') }
  const modules = loadOrder(texts, MODULES, []).map((path) => `${moduleName(path)}.ko`)

  const file = async (path: string, mode: number): Promise<CpioEntry> => ({
    path,
    type: 'file',
    mode,
    bytes: await readFile(join(unpacked, path)),
  })
  const entries: CpioEntry[] = [
    { path: 'init', type: 'file', mode: 0o755, bytes: Buffer.from(init(modules, device)) },
    { path: 'dev/console', type: 'char', mode: 0o600, device: [5, 1] },
    await file('bin/busybox', 0o755),
    ...['sh', 'mount', 'insmod', 'sleep', 'switch_root'].map(
      (name): CpioEntry => ({ path: `bin/${name}`, type: 'symlink', target: 'busybox' }),
    ),
    ...['proc', 'sys', 'dev', 'root'].map((path): CpioEntry => ({ path, type: 'dir', mode: 0o755 })),
  ]
  for (const name of modules) entries.push(await file(`lib/modules/${name}`, 0o644))
  await writeFile(output, compressArchive(packCpio(entries), 'zstd'))
}

const init = (modules: readonly string[], device: string): string => `#!/bin/sh
export PATH=/bin
say() { read -r up _ </proc/uptime; echo "plain-init: stage $1 uptime=$up"; }
mount -t proc proc /proc
say start
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
${modules.map((name) => `insmod /lib/modules/${name}`).join('\n')}
say find
while [ ! -b ${device} ]; do sleep 0.1; done
say root
mount -t squashfs -o ro ${device} /root
say switch
for folder in proc sys dev; do mount -o move /$folder /root/$folder; done
exec switch_root /root /sbin/init
`
