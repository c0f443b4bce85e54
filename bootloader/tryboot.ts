import { type FileHandle, open, readFile } from 'node:fs/promises'
import { systemCode, systemReason } from '../base/errors.ts'
import { AUTOBOOT_BYTES, type Autoboot, type BootPartitions, decodeAutoboot, encodeAutoboot } from './autoboot.ts'
import type { BootBackend } from './backend.ts'
import { bootErrors } from './errors.ts'
import { checkState } from './machine.ts'
import type { ReasonPlace } from './reason-place.ts'
import type { BootState } from './state.ts'

/**
 * The Raspberry Pi backend: an edge module over `autoboot.txt` on the mounted first partition. The firmware has one flag
 * for one boot and forgets what became of it, so the agent notes that the try is under way before it asks for the reboot.
 */

export interface TrybootOptions {
  /** `/boot/firmware/autoboot.txt` or wherever the first partition is mounted. */
  readonly file: string
  readonly partitions: BootPartitions
  /** Whether this boot was the one with the flag: `/proc/device-tree/chosen/bootloader/tryboot`. */
  readonly inTryboot: () => Promise<boolean>
  readonly reasons: ReasonPlace
}

/** A flag of the device tree: a 32-bit number, not 0. */
export async function flagAt(path: string): Promise<boolean> {
  return await readFile(path).then(
    (bytes) => bytes.length === 4 && bytes.readUInt32BE(0) !== 0,
    () => false,
  )
}

export function trybootBackend({ file, partitions, inTryboot, reasons }: TrybootOptions): BootBackend {
  const present = async (): Promise<Autoboot | undefined> => {
    try {
      return decodeAutoboot(await readFile(file), partitions)
    } catch (cause) {
      throw bootErrors.BOOT_STATE_READ(`${file}: ${systemReason(cause)}`, { cause })
    }
  }
  const store = async (next: Autoboot): Promise<void> => {
    const bytes = encodeAutoboot(next, partitions)
    try {
      await overwrite(file, bytes)
    } catch (cause) {
      throw bootErrors.BOOT_STATE_WRITE(`${file}: ${systemReason(cause)}`, { cause })
    }
    if (Buffer.compare(await readFile(file), bytes) !== 0)
      throw bootErrors.BOOT_STATE_NOT_STORED(`${file} reads back other bytes than were written`)
  }
  return {
    describe: () => ({ name: 'tryboot', place: file, maxTries: 1 }),
    read: async () => {
      const found = await present()
      if (found === undefined) return { state: undefined, torn: false }
      // Under way and here by the flag: this is the try. Under way and here without: it is over.
      const left = found.underWay && !(await inTryboot()) ? 0 : found.state.left
      return { state: { ...found.state, left }, torn: false }
    },
    write: async (state: BootState) => {
      const before = await present()
      if (before !== undefined && checkState(state).generation <= before.state.generation)
        throw bootErrors.BOOT_STATE_INVALID(`generation ${state.generation} is not above ${before.state.generation}`)
      await store({ state, underWay: false })
    },
    rebootArgument: async () => {
      const found = await present()
      if (found === undefined || found.underWay || found.state.left === 0) return undefined
      await store({ ...found, underWay: true })
      return '0 tryboot'
    },
    reason: () => reasons.reason(),
    clearReason: (up) => reasons.clearReason(up),
    close: async () => undefined,
  }
}

/** In place: the file keeps its length and its blocks, so of a FAT file system nothing but this sector changes. */
async function overwrite(path: string, bytes: Uint8Array): Promise<void> {
  let file: FileHandle
  try {
    file = await open(path, 'r+')
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error
    file = await open(path, 'w', 0o644)
  }
  try {
    if ((await file.stat()).size > AUTOBOOT_BYTES) await file.truncate(AUTOBOOT_BYTES)
    await file.write(bytes, 0, bytes.length, 0)
    await file.sync()
  } finally {
    await file.close()
  }
}
