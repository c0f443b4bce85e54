import { constants } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import { systemReason } from '../../base/errors.ts'
import type { Processes } from '../agent/ports.ts'
import type { SysFs } from '../slots/sys.ts'
import { usbErrors } from './errors.ts'
import { type FileSystem, fileSystemOf, mountOptions, START_BYTES } from './file-system.ts'
import { findSticks, namedStick, type Stick } from './find.ts'

/** The real sticks: found by the kernel's word, mounted by mount(8). */
export interface Sticks {
  list(): Promise<readonly Stick[]>
  /** @throws USB_NOT_A_STICK */
  named(path: string): Promise<Stick>
  /** @throws USB_FILE_SYSTEM, USB_MOUNT */
  fileSystem(stick: Stick): Promise<FileSystem>
  /** @returns the folder. @throws USB_MOUNT */
  mount(stick: Stick, type: FileSystem, mode: 'ro' | 'rw'): Promise<string>
  /** Also of a stick that is gone. Never fails. */
  unmount(): Promise<void>
}

/** The kernel tries a command of 30 s more than once before it gives a stick up. */
const MOUNT_MS = 90_000
/** Half of what a stopped operation is given to end. */
const UNMOUNT_MS = 25_000

/** @param run folder for the mount point, not writable by others */
export function kernelSticks(sys: SysFs, processes: Processes, run: string): Sticks {
  const folder = join(run, 'stick')
  return {
    list: () => findSticks(sys),
    named: async (path) => {
      const found = await namedStick(sys, path)
      if (found === undefined)
        throw usbErrors.USB_NOT_A_STICK(`${path} is no disk, or the one that this system runs from`)
      return found
    },
    fileSystem: async ({ name }) => {
      const type = fileSystemOf(await readStart(name))
      if (type === undefined) throw usbErrors.USB_FILE_SYSTEM(`/dev/${name} begins like none of FAT, exFAT and ext4`)
      return type
    },
    mount: async ({ name }, type, mode) => {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const command = ['mount', '-t', type, '-o', mountOptions(type, mode), `/dev/${name}`, folder] as const
      const { exit, said } = await processes.run(command, MOUNT_MS)
      if (exit !== 0)
        throw usbErrors.USB_MOUNT(
          `/dev/${name} (${type}) cannot be mounted: ${said.trim() || `mount ended with ${exit}`}`,
        )
      return folder
    },
    unmount: async () => {
      const { exit } = await processes.run(['umount', folder], UNMOUNT_MS)
      // A stick that was pulled, or a read that still hangs: the name goes at once, the rest when it can.
      if (exit !== 0) await processes.run(['umount', '-l', folder], UNMOUNT_MS)
    },
  }
}

async function readStart(name: string): Promise<Uint8Array> {
  try {
    const file = await open(`/dev/${name}`, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      const start = Buffer.alloc(START_BYTES)
      await file.read(start, 0, START_BYTES, 0)
      return start
    } finally {
      await file.close()
    }
  } catch (cause) {
    throw usbErrors.USB_MOUNT(`/dev/${name} cannot be read: ${systemReason(cause)}`, { cause })
  }
}
