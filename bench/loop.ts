import { spawnSync } from 'node:child_process'
import { truncate, writeFile } from 'node:fs/promises'
import { tool, toolEnv } from './measure.ts'

/** Loop devices: slots as a device has them, on files. Needs root. */

export interface LoopDevice {
  readonly path: string
  readonly file: string
  readonly size: number
  /** Fills the device with what the last release might have left, flushed, and out of the page cache. */
  fillFrom(old: string): Promise<void>
  detach(): Promise<void>
}

/** What is left when the bench is stopped half-way is let go of too. */
const attached = new Set<string>()
process.on('exit', () => {
  for (const path of attached) spawnSync('losetup', ['--detach', path], { env: toolEnv })
})

/** Bytes: rounded up to 1 MiB. */
export async function makeLoop(file: string, bytes: number): Promise<LoopDevice> {
  const size = Math.ceil(bytes / 2 ** 20) * 2 ** 20
  await writeFile(file, '')
  await truncate(file, size)
  const path = (await tool('losetup', ['--find', '--show', file])).trim()
  attached.add(path)
  return {
    path,
    file,
    size,
    fillFrom: async (old) => {
      await tool('dd', [`if=${old}`, `of=${path}`, 'bs=1M', `count=${size / 2 ** 20}`, 'conv=fsync', 'status=none'])
      await forget(file)
    },
    detach: async () => {
      await tool('losetup', ['--detach', path])
      attached.delete(path)
    },
  }
}

/** Takes a file out of the page cache: both sides find it where a device would, on its medium. */
export async function forget(file: string): Promise<void> {
  await tool('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none'])
}

/** Why there are no loop devices here; undefined when there are. */
export async function noLoop(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'loop devices need root'
  return await tool('losetup', ['--find']).then(
    () => undefined,
    () => 'this machine gives no loop device',
  )
}
