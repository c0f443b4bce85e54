import { existsSync, readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import { gptPartition } from '../../bootloader/gpt.ts'
import type { Brokers } from '../doors/brokers.ts'
import type { Reach } from '../doors/connect.ts'
import { openForReuse, openSlotDevice } from '../slots/block.ts'
import { openDirect } from '../slots/direct.ts'
import { slotErrors } from '../slots/errors.ts'
import { checkNotInUse, findRunningDisk, findSlots, partitionNames } from '../slots/find.ts'
import { nodeSys } from '../slots/sys.ts'
import type { SlotDevice, SlotPlace } from '../slots/types.ts'
import type { Space } from '../space/space.ts'
import { type BackendEdge, openBackend, openRepairer } from './backends.ts'
import { bootOver, engineOver, type Slots } from './engine-over.ts'
import type { GivenPlaces } from './places.ts'
import type { BootPort, Engine } from './ports.ts'

/** The partitions of the disk that the running system came from, or the places that a device names by hand. */

const sys = nodeSys()

export const makeEngine = (
  data: string,
  files: Files,
  given: GivenPlaces | undefined,
  reach?: () => Promise<Reach>,
  brokers?: Brokers,
  space?: Space,
): Engine => engineOver(data, files, slotsOfDevice(given), space, reach, brokers)

export function slotsOfDevice(given: GivenPlaces | undefined): Slots {
  const place = async (slot: 'a' | 'b', image: 'boot' | 'rootfs'): Promise<SlotPlace> =>
    (await findSlots(sys, await findRunningDisk(sys), given?.slots))[slot][image]
  return {
    forWriting: async (slot, image) => {
      const found = await place(slot, image)
      await checkNotInUse(sys, found)
      return await openSlotDevice(found)
    },
    forReuse: async (slot, image) => openForReuse(await place(slot, image)),
    forVerifying: async (slot, image) => openReader(await place(slot, image)),
  }
}

/** Past the page cache where that is possible. */
async function openReader(place: SlotPlace): Promise<SlotDevice> {
  const cached = await openForReuse(place)
  const direct = await openDirect(place.path, place.size, 'r')
  return {
    name: place.path,
    size: place.size,
    freshness: direct === undefined ? 'cached' : 'direct',
    read: (offset, into) => (direct ?? cached).read(offset, into, { fresh: true }),
    write: async () => {
      throw slotErrors.SLOT_WRITE_FAILED(`${place.path} is open for reading only`)
    },
    flush: async () => undefined,
    close: async () => {
      await direct?.close()
      await cached.close()
    },
  }
}

/** The bootloader's backend of this device. */
export const makeBoot = (given: GivenPlaces | undefined): BootPort =>
  bootOver(
    () => openBackend(given, edgeOf(given)),
    () => openRepairer(given, edgeOf(given)),
  )

const edgeOf = (given: GivenPlaces | undefined): BackendEdge => ({
  findBootstate: () => findBootstate(),
  startedByUboot: () =>
    / bistable\.loader=uboot\b/.test(readFileSync('/proc/cmdline', 'latin1')) ||
    (existsSync('/proc/device-tree') && !existsSync('/sys/firmware/efi')),
  bootImage: async (slot) => {
    const image = await slotsOfDevice(given).forReuse(slot, 'boot')
    const read = async (offset: number, length: number) => {
      const into = new Uint8Array(length)
      await image.read(offset, into, { fresh: false })
      return into
    }
    return { read, close: () => image.close() }
  },
  bootPartition: async (slot) => {
    const disk = await findRunningDisk(sys)
    if (disk === undefined) throw slotErrors.SLOT_DISK_UNKNOWN('the disk of the running system is not known')
    const sector = Number((await sys.read(`/sys/class/block/${disk}/queue/logical_block_size`))?.trim() ?? 512)
    const file = await open(join('/dev', disk), 'r')
    try {
      const read = async (offset: number, length: number) => {
        const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset)
        return buffer.subarray(0, bytesRead)
      }
      return await gptPartition(read, `boot-${slot}`, sector)
    } finally {
      await file.close()
    }
  },
})

async function findBootstate(): Promise<string> {
  const disk = await findRunningDisk(sys)
  if (disk === undefined) throw slotErrors.SLOT_DISK_UNKNOWN('the disk of the running system is not known')
  const found = (await partitionNames(sys, disk)).filter((entry) => entry.partName === 'bootstate')
  const [first] = found
  if (first === undefined || found.length > 1) {
    throw slotErrors.SLOT_MISSING(`disk ${disk} has ${found.length} partitions named bootstate, wanted 1`)
  }
  return join('/dev', first.kernelName)
}
