import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { readExactly } from '../../base/source.ts'
import { openBootState } from '../../bootloader/bootstate.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { openBundle } from '../../bundle/reader.ts'
import { IMAGE_NAMES, type ReleaseStatement } from '../../bundle/types.ts'
import { verifyBundle } from '../../bundle/verify.ts'
import { openFileDoor } from '../doors/file.ts'
import { openHttpDoor } from '../doors/http.ts'
import { install } from '../install/install.ts'
import type { ReuseSource } from '../install/types.ts'
import { slotFault } from '../install/verify.ts'
import { openForReuse, openSlotDevice } from '../slots/block.ts'
import { openDirectReader } from '../slots/direct.ts'
import { slotErrors } from '../slots/errors.ts'
import { checkNotInUse, findRunningDisk, findSlots, partitionNames } from '../slots/find.ts'
import { nodeSys } from '../slots/sys.ts'
import type { SlotDevice, SlotPlace } from '../slots/types.ts'
import type { GivenPlaces } from './places.ts'
import type { BootPort, Engine, InstallCall } from './ports.ts'
import { forgetSlot, readSlotIndex, readSlotRelease, slotFolder, storeSlot } from './slot-files.ts'

/** The real bundles, slots and boot state: binds the rooms that move bytes to what the agent asks for. */

const sys = nodeSys()

export function makeEngine(data: string, files: Files, given: GivenPlaces | undefined): Engine {
  const places = async () => findSlots(sys, await findRunningDisk(sys), given?.slots)
  return {
    open: (source, signal) => (/^https?:/i.test(source) ? openHttpDoor(source, { signal }) : openFileDoor(source)),
    head: (source, trusted, signal) => openBundle(source, { trusted }, { signal }),
    verifyWhole: async (source, trusted, signal, onProgress) => {
      await verifyBundle(source, { trusted }, { signal, onProgress })
    },
    install: async (call) => {
      const table = await places()
      return await withOpened(async (opened) => {
        const target = otherSlot(call.running)
        const slot = { boot: await claimPlace(table[target].boot), rootfs: await claimPlace(table[target].rootfs) }
        opened.push(slot.boot, slot.rootfs)
        const reuse = await reuseFrom(files, data, call.running, table[call.running], opened)
        return await install({ ...call, slot, reuse, ...steps(files, slotFolder(data, target), call) })
      })
    },
    slotFault: async (slot, statement, signal) => {
      const table = await places()
      return await withOpened((opened) => faultOf(table[slot], statement, signal, opened))
    },
    storedRelease: (slot) => readSlotRelease(files, slotFolder(data, slot)),
    fetchSmall: async (url, limit, signal) => {
      try {
        const source = await openHttpDoor(url.href, { signal, maxSize: limit })
        try {
          return await readExactly(source, 0, Math.min(source.size, limit), { signal })
        } finally {
          await source.close()
        }
      } catch (error) {
        if (isBistableError(error, 'TRANSPORT_MISSING')) return undefined
        throw error
      }
    },
  }
}

/** The data partition's knowledge of the slot follows the slot: void before the first write, complete before arming. */
function steps(files: Files, folder: string, call: InstallCall): Pick<InstallCall, 'invalidate' | 'beforeArm'> {
  return {
    invalidate: async () => {
      await call.invalidate()
      await forgetSlot(files, folder)
    },
    beforeArm: async () => {
      await storeSlot(files, folder, call.head, call.source, call.signal)
      await call.beforeArm()
    },
  }
}

async function claimPlace(place: SlotPlace): Promise<SlotDevice> {
  await checkNotInUse(sys, place)
  return await openSlotDevice(place)
}

async function reuseFrom(
  files: Files,
  data: string,
  running: Slot,
  places: Readonly<Record<'boot' | 'rootfs', SlotPlace>>,
  opened: { close(): Promise<void> }[],
): Promise<readonly ReuseSource[]> {
  const folder = slotFolder(data, running)
  const stored = await readSlotRelease(files, folder)
  if (stored === undefined) return []
  const sources: ReuseSource[] = []
  for (const name of IMAGE_NAMES) {
    const index = await readSlotIndex(files, folder, stored, name)
    if (index === undefined) continue
    const device = await openForReuse(places[name])
    opened.push(device)
    sources.push({ name: places[name].path, index, device })
  }
  return sources
}

/** Reads only, past the page cache where that is possible; the slot may be the one that runs. */
async function faultOf(
  places: Readonly<Record<'boot' | 'rootfs', SlotPlace>>,
  statement: ReleaseStatement,
  signal: AbortSignal,
  opened: { close(): Promise<void> }[],
): Promise<string | undefined> {
  for (const image of statement.images) {
    const place = places[image.name]
    const cached = await openForReuse(place)
    const direct = await openDirectReader(place.path, place.size)
    opened.push(cached, ...(direct === undefined ? [] : [direct]))
    const device: SlotDevice = {
      name: place.path,
      size: place.size,
      freshness: direct === undefined ? 'cached' : 'direct',
      read: (offset, into) => (direct ?? cached).read(offset, into, { fresh: true }),
      write: async () => {
        throw slotErrors.SLOT_WRITE_FAILED(`${place.path} is open for reading only`)
      },
      flush: async () => undefined,
      close: async () => undefined,
    }
    const fault = await slotFault(device, image, { signal })
    if (fault !== undefined) return `${image.name}: ${fault}`
  }
  return undefined
}

async function withOpened<T>(work: (opened: { close(): Promise<void> }[]) => Promise<T>): Promise<T> {
  const opened: { close(): Promise<void> }[] = []
  try {
    return await work(opened)
  } finally {
    for (const one of opened.reverse()) await one.close()
  }
}

export function makeBoot(given: GivenPlaces | undefined): BootPort {
  const using = async <T>(work: (device: Awaited<ReturnType<typeof openBootState>>) => Promise<T>): Promise<T> => {
    const device = await openBootState(given?.bootstate ?? (await findBootstate()))
    try {
      return await work(device)
    } finally {
      await device.close()
    }
  }
  return {
    read: () => using(async (device) => (await device.read()).state),
    write: (state) => using((device) => device.write(state)),
    failure: () => using(async (device) => (await device.reason()).failure),
    cameUp: (slot) => using((device) => device.clearReason(slot)),
  }
}

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
