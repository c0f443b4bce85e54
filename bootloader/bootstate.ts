import { systemReason } from '../base/errors.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import { bootErrors } from './errors.ts'
import { BLOCK_BYTES } from './grub-block.ts'
import { type BootCopy, chooseCopy, decodeCopy, encodeCopy, SECTOR_BYTES } from './grub-env.ts'
import { FILES, type FileIndex, layoutImage, METADATA_BYTES, metadata, REASON } from './layout.ts'
import { checkState } from './machine.ts'
import { openRawDevice, type RawDevice } from './raw-device.ts'
import { type BootReason, decodeReason, encodeReason, NO_REASON } from './reason.ts'
import { type BootState, MAX_TRIES, type Slot } from './state.ts'

/** The GRUB backend: the boot state partition as `grub.cfg` reads it. An edge module, over a `RawDevice`. */

export interface BootStateReading extends BackendReading {
  /** Which copy it came from. */
  readonly source: 0 | 1 | undefined
  readonly copies: readonly [BootCopy, BootCopy]
}

export interface BootStateDevice extends BootBackend {
  read(): Promise<BootStateReading>
  /** Stores `state` in the copy that does not count: one write of 512 bytes. */
  write(state: BootState): Promise<void>
}

/** The image of the boot state partition (1 MiB) of a device that runs `state.primary` and never failed. */
export async function bootstateImage(state: BootState): Promise<Uint8Array> {
  checkState(state)
  const reason = encodeReason({ ...NO_REASON, starts: { ...NO_REASON.starts, up: state.primary } })
  // The second copy is a generation older where there is one, so that the first write replaces it.
  const older = { ...state, generation: Math.max(0, state.generation - 1) }
  return layoutImage([encodeCopy(state), encodeCopy(older), reason])
}

/** Opens the boot state partition at `path`, whatever is in it. Throws BOOT_STATE_READ. */
export async function openWhole(path: string): Promise<RawDevice> {
  return await openRawDevice(path).catch((cause: unknown) => {
    throw bootErrors.BOOT_STATE_READ(`${path} cannot be opened: ${systemReason(cause)}`, { cause })
  })
}

/** Opens the boot state partition at `path`. Throws BOOT_STATE_READ, BOOT_STATE_LAYOUT. */
export async function openBootState(path: string): Promise<BootStateDevice> {
  const device = await openWhole(path)
  try {
    await checkLayout(device)
  } catch (error) {
    await device.close()
    throw error
  }
  return bootStateOn(device)
}

/**
 * Throws BOOT_STATE_LAYOUT unless the three files are where the bootloader finds them, also when a sector around them is
 * lost: a repair writes it anew. BOOT_STATE_READ when the partition ends before.
 */
export async function checkLayout(device: RawDevice): Promise<void> {
  const found = await device.read(0, METADATA_BYTES).catch((cause: unknown) => {
    if (cause instanceof RangeError) throw bootErrors.BOOT_STATE_READ(cause.message, { cause })
    throw bootErrors.BOOT_STATE_LAYOUT(`${device.name} cannot be read: ${systemReason(cause)}`, { cause })
  })
  const at = metadata().findIndex((byte, index) => byte !== found[index])
  if (at !== -1)
    throw bootErrors.BOOT_STATE_LAYOUT(`${device.name} differs from the boot state file system at byte ${at}`)
}

/** The boot state on an already checked device. */
export function bootStateOn(device: RawDevice): BootStateDevice {
  return {
    describe: () => ({ name: 'grub', place: `GRUB environment blocks on ${device.name}`, maxTries: MAX_TRIES }),
    read: () => readBootState(device),
    write: (state) => writeBootState(device, state),
    reason: () => readReason(device),
    clearReason: (up) => clearReason(device, up),
    close: () => device.close(),
  }
}

export async function readBootState(device: RawDevice): Promise<BootStateReading> {
  const copies = [await readCopy(device, 0), await readCopy(device, 1)] as const
  const source = chooseCopy(copies)
  const counting = source === undefined ? undefined : copies[source]
  const torn = source !== undefined && copies.some(({ kind }) => kind === 'torn')
  return { state: counting?.kind === 'valid' ? counting.state : undefined, torn, source, copies }
}

/** A copy that cannot be read is a lost one, not a failure: that is what the other is for. */
async function readCopy(device: RawDevice, index: 0 | 1): Promise<BootCopy> {
  try {
    return decodeCopy(await readFile(device, index))
  } catch (error) {
    return { kind: 'torn', detail: `cannot be read: ${systemReason(error)}` }
  }
}

export async function writeBootState(device: RawDevice, state: BootState): Promise<void> {
  const { state: before, source } = await readBootState(device)
  if (before !== undefined && checkState(state).generation <= before.generation)
    throw bootErrors.BOOT_STATE_INVALID(
      `generation ${state.generation} is to replace ${before.generation}: it must be higher`,
    )
  await storeFile(device, source === 0 ? 1 : 0, encodeCopy(state))
}

/**
 * Overwrites one file in place. The first sector is the one that counts. The second one is constant and written only
 * when something damaged it, and then before the first.
 */
export async function storeFile(device: RawDevice, index: FileIndex, block: Uint8Array): Promise<void> {
  const { name, offset } = FILES[index]
  const tail = block.subarray(SECTOR_BYTES)
  try {
    const present = await device.read(offset + SECTOR_BYTES, tail.length).catch(() => undefined)
    if (present === undefined || !equal(present, tail)) {
      await device.write(offset + SECTOR_BYTES, tail)
      await device.flush()
    }
    await device.write(offset, block.subarray(0, SECTOR_BYTES))
    await device.flush()
  } catch (cause) {
    throw bootErrors.BOOT_STATE_WRITE(`${name} on ${device.name}: ${systemReason(cause)}`, { cause })
  }
  const back = await readFile(device, index).catch((cause: unknown) => {
    throw bootErrors.BOOT_STATE_NOT_STORED(`${name} on ${device.name} cannot be read back: ${systemReason(cause)}`, {
      cause,
    })
  })
  if (!equal(back, block))
    throw bootErrors.BOOT_STATE_NOT_STORED(`${name} on ${device.name} reads back other bytes than were written`)
}

/** Starts and failure; a record that cannot be read says nothing, as for the bootloader. */
export async function readReason(device: RawDevice): Promise<BootReason> {
  return await readFile(device, REASON).then(decodeReason, () => NO_REASON)
}

export async function clearReason(device: RawDevice, up: Slot): Promise<void> {
  const wanted = encodeReason({ starts: { a: 0, b: 0, up }, failure: undefined })
  const present = await readFile(device, REASON).catch(() => undefined)
  if (present === undefined || !equal(present, wanted)) await storeFile(device, REASON, wanted)
}

async function readFile(device: RawDevice, index: FileIndex): Promise<Uint8Array> {
  return await device.read(FILES[index].offset, BLOCK_BYTES)
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0
}
