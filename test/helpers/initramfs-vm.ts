import { spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { FILES, REASON } from '../../bootloader/layout.ts'
import { freshState, type Starts } from '../../bootloader/machine.ts'
import { type BootReason, decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { buildInitramfs } from '../../initramfs/build.ts'
import { makeBtrfs } from '../../publisher/disk/btrfs.ts'
import { makeData } from '../../publisher/disk/data.ts'
import { copyInto, type Disk, makeDisk, readAt, writeAt } from './disk.ts'
import { hostSource } from './host-source.ts'
import { debianKernel, EMULATED } from './kernel.ts'
import { run } from './run.ts'

/** A device of two tiny slots in QEMU, started with `-kernel` so that each boot takes a few seconds. */

export interface Slot {
  readonly root: string
  readonly length: number
}

export interface InitramfsVm {
  readonly dir: string
  readonly disk: Disk
  /** Makes a root file system of these files (path: content) and puts it with its tree into a slot. */
  fill(slot: 'a' | 'b', files: Readonly<Record<string, string | Uint8Array>>): Slot
  /** Boots a slot; returns the console until the machine stops or resets. */
  boot(slot: 'a' | 'b', image: Slot, more: Readonly<Record<string, string>>): Promise<string>
  setStarts(starts: Starts): void
  reason(): BootReason
  remove(): void
}

/** Five on an idle machine; this is for one that has much else to do. */
const KERNEL_SECONDS = 300

/** @param dataMiB of the data partition, which is btrfs with `options.btrfs` */
export async function makeVm(options: Parameters<typeof buildInitramfs>[1] = {}, dataMiB = 32): Promise<InitramfsVm> {
  const dir = mkdtempSync(join(tmpdir(), 'bistable-vm-'))
  const kernel = debianKernel()
  const initrd = join(dir, 'initrd.img')
  writeFileSync(initrd, await buildInitramfs(hostSource(kernel.root), { modules: ['virtio_blk'], ...options }))
  const sizes = {
    esp: 64,
    bootstate: 1024,
    'boot-a': 64,
    'rootfs-a': 4096,
    'boot-b': 64,
    'rootfs-b': 4096,
    data: dataMiB * 1024,
  }
  const disk = makeDisk(join(dir, 'disk.img'), sizes)
  writeAt(disk.path, disk.offsets.bootstate, await bootstateImage(freshState('a')))
  const data = { offset: disk.offsets.data, size: sizes.data * 1024, uuid: '8b5bd7f6-2a35-4c80-9d3c-5e4d0a1b2c3d' }
  const made = { ...data, time: 1_700_000_000, workDir: dir }
  if (options.btrfs === true) copyInto(disk, 'data', await makeBtrfs([], made))
  else await makeData(disk.path, [], made)
  const reasonAt = disk.offsets.bootstate + FILES[REASON].offset

  return {
    dir,
    disk,
    fill: (slot, files) => fillSlot(dir, disk, slot, files),
    boot(slot, image, more) {
      const words = {
        slot,
        release: '0.1',
        boot: 'committed',
        left: '0',
        why: 'ok',
        root: image.root,
        length: String(image.length),
        ...more,
      }
      const args = Object.entries(words).map(([name, value]) => `bistable.${name}=${value}`)
      return qemu(
        kernel.vmlinuz,
        initrd,
        disk.path,
        `console=ttyS0 quiet loglevel=4 panic=5 ${EMULATED} ${args.join(' ')}`,
      )
    },
    setStarts: (starts) => writeAt(disk.path, reasonAt, encodeReason({ starts, failure: undefined })),
    reason: () => decodeReason(readAt(disk.path, reasonAt, 1024)),
    remove: () => rmSync(dir, { recursive: true, force: true }),
  }
}

export function fillSlot(
  dir: string,
  disk: Disk,
  slot: 'a' | 'b',
  files: Readonly<Record<string, string | Uint8Array>>,
): Slot {
  const tree = join(dir, `tree-${slot}`)
  const image = join(dir, `${slot}.squashfs`)
  rmSync(tree, { recursive: true, force: true })
  for (const name of ['bin', 'sbin', 'data', 'proc', 'sys', 'dev', 'run', 'tmp', 'etc', 'var'])
    mkdirSync(join(tree, name), { recursive: true })
  run('cp', ['/bin/busybox', join(tree, 'bin/busybox')])
  symlinkSync('busybox', join(tree, 'bin/sh'))
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(tree, path, '..'), { recursive: true })
    writeFileSync(join(tree, path), text)
    const begins = Buffer.from(text).subarray(0, 4).toString('latin1')
    if (path === 'sbin/init' || begins.startsWith('#!') || begins === '\x7fELF') chmodSync(join(tree, path), 0o755)
  }
  rmSync(image, { force: true })
  run('mksquashfs', [tree, image, '-quiet', '-no-progress', '-all-root', '-comp', 'zstd'])
  const length = Math.ceil(readFileSync(image).length / 4096) * 4096
  run('truncate', ['-s', String(length), image])
  const hashes = join(dir, `${slot}.hash`)
  const said = run('veritysetup', ['format', '--no-superblock', '--salt=-', image, hashes])
  const root = /Root hash:\s*([0-9a-f]{64})/.exec(said)?.[1]
  if (root === undefined) throw new Error(said)
  copyInto(disk, `rootfs-${slot}`, image)
  writeAt(disk.path, disk.offsets[`rootfs-${slot}`] + length, readFileSync(hashes))
  return { root, length }
}

function qemu(kernel: string, initrd: string, disk: string, append: string): Promise<string> {
  const args = [
    '-machine',
    'q35',
    '-cpu',
    'qemu64',
    '-accel',
    'tcg',
    '-m',
    '512',
    '-nographic',
    '-no-reboot',
    '-nic',
    'none',
  ]
  args.push('-kernel', kernel, '-initrd', initrd, '-append', append)
  args.push('-drive', `file=${disk},format=raw,if=virtio,cache=unsafe`)
  return new Promise((resolve, reject) => {
    const child = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let console = ''
    const hung = setTimeout(() => child.kill('SIGKILL'), KERNEL_SECONDS * 1000)
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      console = (console + text).slice(-200_000)
    })
    child.stderr.setEncoding('latin1').on('data', (text: string) => {
      console += text
    })
    child.once('error', reject)
    child.once('close', (code, signal) => {
      clearTimeout(hung)
      if (signal === null && code === 0) resolve(console)
      else reject(new Error(`qemu ended with ${code ?? signal}:\n${console.slice(-4000)}`))
    })
  })
}
