import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect } from 'vitest'
import { have, run } from '../helpers/run.ts'

/** A data partition of its own: a real file system on a loop device. Root only, with a kernel that has both. */

export type FileSystem = 'ext4' | 'btrfs'

const MAKE = { ext4: ['mke2fs', '-q', '-t', 'ext4', '-b', '4096', '-m', '0'], btrfs: ['mkfs.btrfs', '-q'] } as const

export const canMount = (kind: FileSystem): boolean =>
  have(MAKE[kind][0], 'mount', 'umount') &&
  process.getuid?.() === 0 &&
  existsSync('/dev/loop-control') &&
  readFileSync('/proc/filesystems', 'utf8').includes(`\t${kind}\n`)

export class Partition {
  readonly folder: string

  /** @param folder where it is mounted; `more` for mkfs */
  constructor(folder: string, kind: FileSystem, bytes: number, more: readonly string[] = []) {
    this.folder = folder
    mkdirSync(folder, { recursive: true })
    const image = `${folder}.img`
    writeFileSync(image, '')
    truncateSync(image, bytes)
    const [program, ...args] = MAKE[kind]
    run(program, [...args, ...more, image])
    run('mount', ['-o', 'loop,noatime', image, folder])
  }

  /** What the system's programs have written: until not one block is left for root either. */
  fill(name = 'var/log'): void {
    const folder = join(this.folder, name)
    mkdirSync(folder, { recursive: true })
    for (const [n, size] of [1 << 20, 65_536, 4096].entries()) {
      const log = openSync(join(folder, `${n}.log`), 'w')
      const piece = Buffer.alloc(size, 1)
      try {
        for (;;) writeSync(log, piece)
      } catch (error) {
        expect(error).toMatchObject({ code: 'ENOSPC' })
      }
      fsyncSync(log)
      closeSync(log)
    }
    expect(() => writeFileSync(join(folder, 'more'), Buffer.alloc(65_536, 1), { flush: true })).toThrow(/ENOSPC/)
    rmSync(join(folder, 'more'), { force: true })
  }

  get free(): number {
    const { bavail, bsize } = statfsSync(this.folder)
    return bavail * bsize
  }

  end(): void {
    run('umount', [this.folder])
    rmSync(`${this.folder}.img`)
  }
}
