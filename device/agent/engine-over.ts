import { isAddress } from '../../base/address.ts'
import { KiB, MiB } from '../../base/bytes.ts'
import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { useHashCrew } from '../../base/hash-crew.ts'
import { type ByteSource, readExactly } from '../../base/source.ts'
import type { BootBackend } from '../../bootloader/backend.ts'
import type { BootRepairer } from '../../bootloader/repair.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead, ImageName } from '../../bundle/types.ts'
import { verifyBehindHead } from '../../bundle/verify.ts'
import { Brokers } from '../doors/brokers.ts'
import type { Reach } from '../doors/connect.ts'
import { openFileDoor } from '../doors/file.ts'
import type { HttpDoorOptions } from '../doors/http.ts'
import { openMqttDoor } from '../doors/mqtt.ts'
import type { PatienceLimits } from '../doors/patience.ts'
import { readAhead } from '../doors/read-ahead.ts'
import { fetchRetained } from '../doors/retained.ts'
import { install, previewInstall } from '../install/install.ts'
import { slotFault } from '../install/verify.ts'
import type { SlotDevice } from '../slots/types.ts'
import type { Taken } from '../space/biggest.ts'
import { type Space, UNLIMITED } from '../space/space.ts'
import { keptIndexes } from './kept-sides.ts'
import type { BootPort, Engine, InstallCall } from './ports.ts'
import { placesFor } from './reuse-from.ts'
import { forgetSlot, readSlotRelease, slotFilesSize, slotFolder, storeSlot } from './slot-files.ts'

/** Opens the places of a slot's images; who opens one closes it. */
export interface Slots {
  /** Fails when the place is in use. */
  forWriting(slot: Slot, image: ImageName): Promise<SlotDevice>
  forReuse(slot: Slot, image: ImageName): Promise<Pick<SlotDevice, 'name' | 'size' | 'read' | 'close'>>
  /** Reads only; the slot may be the one that runs. */
  forVerifying(slot: Slot, image: ImageName): Promise<SlotDevice>
}

/** Imported when asked for: HTTP and TLS cost a start more than a local install reads in the same time. */
const openHttpDoor = async (url: string, options: HttpDoorOptions): Promise<ByteSource> =>
  (await import('../doors/http.ts')).openHttpDoor(url, options)

const isBroker = (address: string): boolean => /^mqtts?:/i.test(address)

/** For the records that are written until the release is armed, each beside the one it replaces. */
const RECORDS: Taken = { bytes: 128 * KiB, files: 4 }
/** For those of a slot that never held a release. */
const FOLDERS: Taken = { bytes: 32 * KiB, files: 4 }

/** Of a small file: done within half a minute when nobody is there, so that the reason is told before the caller's patience ends. */
const SMALL_PATIENCE: PatienceLimits = { firstMs: 1000, maxMs: 60_000, tries: 6 }

/** The real bundles, installs and boot state: binds the rooms that move bytes to what the agent asks for. */

export function engineOver(
  data: string,
  files: Files,
  slots: Slots,
  space: Space = UNLIMITED,
  reach: () => Promise<Reach> = async () => ({}),
  brokers: Brokers = new Brokers(),
): Engine {
  const openWeb = async (address: string, options: HttpDoorOptions) =>
    await openHttpDoor(address, { ...options, ...(await reach()) })
  return {
    open: async (source, signal) => {
      if (!isAddress(source)) return await openWithCrew(source)
      return await (isBroker(source) ? openMqttDoor(brokers, source, { signal }) : openWeb(source, { signal }))
    },
    head: (source, trusted, signal, spare) => {
      const indexOf = spare === undefined ? {} : { indexOf: keptIndexes({ files, data }, spare, signal) }
      return openBundle(source, { trusted }, { signal, ...indexOf })
    },
    // What a chunk unpacks to and the root are proved by the install that follows, before anything is armed.
    verifyWhole: (source, head, signal, onProgress) =>
      verifyBehindHead(source, head, { signal, onProgress, storedOnly: true }),
    install: async (call) => {
      const target = otherSlot(call.running)
      return await withOpened(async (opened) => {
        opened.push({ close: () => space.end() })
        // Asked before anything is given up: afterwards it would be too late to find that the release cannot be recorded.
        await space.require(keptFor(call.head), target)
        opened.push(crew())
        const slot = await bothOpened(opened, (image) => slots.forWriting(target, image))
        const { patch: _, hints, ...rest } = call
        const given = await placesFor({ files, data, slots, opened }, call, true)
        return await install({
          ...{ ...rest, slot, ...given, hintBytes: hints?.bytes ?? 0 },
          ...steps(files, slotFolder(data, target), call, given.inventory?.read, space, target),
        })
      })
    },
    plan: (call) =>
      withOpened(async (opened) => {
        const target = otherSlot(call.running)
        const slot = await bothOpened(opened, (image) => slots.forReuse(target, image))
        const { patch: _, hints, ...rest } = call
        const given = await placesFor({ files, data, slots, opened }, call, false)
        return await previewInstall({ ...rest, slot, ...given, hintBytes: hints?.bytes ?? 0 })
      }),
    slotFault: (slot, statement, signal) =>
      withOpened(async (opened) => {
        opened.push(crew())
        for (const image of statement.images) {
          const fault = await slotFault(kept(opened, await slots.forVerifying(slot, image.name)), image, { signal })
          if (fault !== undefined) return `${image.name}: ${fault}`
        }
        return undefined
      }),
    storedRelease: (slot) => readSlotRelease(files, slotFolder(data, slot)),
    fetchSmall: async (url, limit, signal) => {
      if (isBroker(url.href)) return await fetchRetained(brokers, url.href, limit, { signal })
      try {
        const source = await openWeb(url.href, { signal, maxSize: limit, patience: SMALL_PATIENCE })
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

function keptFor(head: BundleHead): Taken {
  const { bytes, files } = slotFilesSize(head)
  return { bytes: bytes + RECORDS.bytes, files: files + RECORDS.files }
}

/** The data partition's knowledge of the slot follows the slot: void before the first write, complete before arming. */
function steps(
  files: Files,
  folder: string,
  call: InstallCall,
  inventory: (() => Promise<Uint8Array | undefined>) | undefined,
  space: Space,
  slot: Slot,
): Pick<InstallCall, 'invalidate' | 'beforeArm'> {
  return {
    invalidate: async () => {
      await call.invalidate()
      space.begin(slot)
      await space.make(FOLDERS)
      await forgetSlot(files, folder, true)
    },
    beforeArm: async () => {
      await space.make(keptFor(call.head), () => forgetSlot(files, folder))
      await storeSlot(files, folder, call.head, call.source, call.signal, await inventory?.())
      await call.beforeArm()
    },
  }
}

const kept = <T extends { close(): Promise<void> }>(opened: { close(): Promise<void> }[], one: T): T => {
  opened.push(one)
  return one
}

/** Both images of a slot, looked for side by side; what was opened is closed with the rest, also when the other fails. */
async function bothOpened<T extends { close(): Promise<void> }>(
  opened: { close(): Promise<void> }[],
  open: (image: ImageName) => Promise<T>,
): Promise<{ readonly boot: T; readonly rootfs: T }> {
  const [boot, rootfs] = await Promise.allSettled([open('boot'), open('rootfs')])
  for (const one of [boot, rootfs]) if (one.status === 'fulfilled') opened.push(one.value)
  if (boot.status === 'rejected') throw boot.reason
  if (rootfs.status === 'rejected') throw rootfs.reason
  return { boot: boot.value, rootfs: rootfs.value }
}

/** The second thread for hashing, until it is closed. */
function crew(): { close(): Promise<void> } {
  const giveBack = useHashCrew()
  return { close: async () => giveBack() }
}

/** A file gives its bytes as fast as they can be hashed, and from the first one on, while its signatures are checked. */
async function openWithCrew(path: string): Promise<ByteSource> {
  const giveBack = useHashCrew()
  const stop = readAhead(path)
  const end = (): void => {
    giveBack()
    // Not waited for: a read that the kernel does not end must not keep the answer back.
    void stop()
  }
  try {
    const source = await openFileDoor(path)
    return {
      ...source,
      read: (offset, length, options) => {
        // From here on it is read as fast as it is wanted: twice would only cost.
        if (length > MiB) void stop()
        return source.read(offset, length, options)
      },
      close: () => source.close().finally(end),
    }
  } catch (error) {
    end()
    throw error
  }
}

async function withOpened<T>(work: (opened: { close(): Promise<void> }[]) => Promise<T>): Promise<T> {
  const opened: { close(): Promise<void> }[] = []
  try {
    return await work(opened)
  } finally {
    // All of them, whatever one says: what counts was flushed and read back, and a place left open is in use for ever.
    for (const one of opened.reverse()) await one.close().catch(() => undefined)
  }
}

/**
 * @param open opens the bootloader's backend; called and closed for each use
 * @param repairer opens what repairs it, whatever condition it is in
 */
export function bootOver(open: () => Promise<BootBackend>, repairer: () => Promise<BootRepairer>): BootPort {
  const using = async <T>(work: (backend: BootBackend) => Promise<T>): Promise<T> => {
    const backend = await open()
    try {
      return await work(backend)
    } finally {
      await backend.close()
    }
  }
  return {
    read: () => using(async (backend) => (await backend.read()).state),
    write: (state) => using((backend) => backend.write(state)),
    failure: () => using(async (backend) => (await backend.reason()).failure),
    cameUp: (slot) => using((backend) => backend.clearReason(slot)),
    torn: () => using(async (backend) => (await backend.read()).torn),
    describe: () => using(async (backend) => backend.describe()),
    rebootArgument: () => using(async (backend) => backend.rebootArgument?.()),
    repairer,
  }
}
