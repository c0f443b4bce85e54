import { encodeCopy, SECTOR_BYTES } from '../../bootloader/grub-env.ts'
import { FILES } from '../../bootloader/layout.ts'
import type { BootState } from '../../bootloader/state.ts'
import type { Doubles } from './device.ts'
import type { RecordedDisk } from './disk.ts'

/** Writers that lose to a power cut, each in its own way. A campaign that does not catch every one proves nothing. */

export const BROKEN: Readonly<Record<string, Doubles>> = {
  'no flush': {
    disk: (disk) => {
      disk.flush = () => undefined
    },
  },
  /** The slot is written before the boot state stops naming it as the spare. */
  'wrong order': {
    engine: (real) => ({
      ...real,
      install: (call) => {
        const beforeArm = async () => {
          await call.invalidate()
          await call.beforeArm()
        }
        return real.install({ ...call, invalidate: async () => undefined, beforeArm })
      },
    }),
  },
  'both copies at once': {
    boot: (real, disk) => ({ ...real, write: async (state) => writeCopies(disk, state, [0, 1]) }),
  },
  'rename without fsync': {
    disk: (disk) => {
      const files = disk.files.bind(disk)
      disk.files = () => ({ ...files(), sync: async () => undefined })
    },
  },
  'arm before verify': {
    engine: (real) => ({
      ...real,
      install: (call) => {
        const invalidate = async () => {
          await call.invalidate()
          await call.arm()
        }
        return real.install({ ...call, invalidate, arm: async () => undefined })
      },
    }),
  },
  'counter not decremented': {
    bootloader: (real) => (files) => {
      const answer = real(files)
      return { ...answer, after: Buffer.concat([files.subarray(0, 2048), answer.after.subarray(2048)]) }
    },
  },
  'one copy only': {
    boot: (real, disk) => ({ ...real, write: async (state) => writeCopies(disk, state, [0]) }),
  },
}

function writeCopies(disk: RecordedDisk, state: BootState, copies: readonly (0 | 1)[]): void {
  for (const n of copies) disk.write('bootstate', FILES[n].offset, encodeCopy(state).subarray(0, SECTOR_BYTES))
  disk.flush('bootstate')
}
