import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Console } from '../../hw-tests/harness/console.ts'
import { startQemu } from '../../hw-tests/harness/qemu.ts'
import { packCpio } from '../../initramfs/cpio.ts'
import { run } from './run.ts'

/** A UEFI machine with one disk that is an EFI system partition, and an initramfs whose init a test writes. */

export function writeInitrd(path: string, init: string, files: Readonly<Record<string, Uint8Array>> = {}): void {
  const archive = packCpio([
    ...['bin', 'proc', 'sys', 'dev', 'mnt', 'modules', 'files'].map(
      (name) => ({ path: name, type: 'dir', mode: 0o755 }) as const,
    ),
    { path: 'dev/console', type: 'char', mode: 0o600, device: [5, 1] },
    { path: 'bin/busybox', type: 'file', mode: 0o755, bytes: readFileSync('/bin/busybox') },
    { path: 'bin/sh', type: 'symlink', target: 'busybox' },
    { path: 'init', type: 'file', mode: 0o755, bytes: Buffer.from(init) },
    ...Object.entries(files).map(([name, bytes]) => ({ path: name, type: 'file', mode: 0o644, bytes }) as const),
  ])
  writeFileSync(path, archive)
}

const MiB = 1 << 20
const START = MiB

/** A GPT disk with one EFI system partition of `mib` MiB that holds what is in `folder`. */
export function makeEspDisk(disk: string, folder: string, mib: number): void {
  const esp = `${disk}.esp`
  rmSync(disk, { force: true })
  rmSync(esp, { force: true })
  run('mkfs.fat', ['-F', '32', '-C', esp, String(mib * 1024)])
  run('sh', ['-c', `mcopy -s -i ${esp} ${folder}/* ::`])
  run('truncate', ['-s', String((mib + 2) * MiB), disk])
  run('sgdisk', ['-n', `1:${START / 512}:${START / 512 + mib * 2048 - 1}`, '-t', '1:ef00', '-c', '1:esp', disk])
  run('dd', [`if=${esp}`, `of=${disk}`, 'bs=1M', `seek=${START / MiB}`, 'conv=notrunc,sparse', 'status=none'])
}

/** Copies a folder of the disk's EFI system partition out; `to` is replaced. */
export function readEsp(disk: string, folder: string, to: string): void {
  rmSync(to, { recursive: true, force: true })
  mkdirSync(join(to, '..'), { recursive: true })
  run('mcopy', ['-s', '-n', '-i', `${disk}@@${START}`, `::${folder}`, to])
}

/** Boots the disk and waits until the console said all of `words` in this order; then the power is cut. */
export async function bootUntil(disk: string, words: readonly string[], transcript: string): Promise<void> {
  const machine = await startQemu({ disk, memoryMiB: 256 })
  const console = new Console(machine.port, { transcript })
  try {
    let position = 0
    for (const word of words) {
      const find = (seen: string) => (seen.includes(word) ? seen.indexOf(word) + word.length : undefined)
      position += await console.waitForText(find, word, position, { timeoutMs: 300_000 })
    }
  } finally {
    await console.close()
    await machine.cut()
  }
}
