import { realpath, stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { SLOTS, type Slot } from '../../bootloader/state.ts'
import { IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { slotErrors } from './errors.ts'
import type { SysFs } from './sys.ts'
import type { SlotPaths, SlotPlace, SlotPlaces, SlotTable } from './types.ts'

const SECTOR = 512

/**
 * Finds the four places of the two slots: by the paths given, else by GPT partition name on the running disk
 * (docs/architecture.md). Needs no udev.
 * @param runningDisk kernel name of the disk (`vda`), from `findRunningDisk`; not needed when `paths` are given
 */
export async function findSlots(sys: SysFs, runningDisk: string | undefined, paths?: SlotPaths): Promise<SlotTable> {
  if (paths !== undefined) return placesByPath(sys, paths)
  if (runningDisk === undefined) throw slotErrors.SLOT_DISK_UNKNOWN('the disk of the running system is not known')
  const names = await partitionNames(sys, runningDisk)
  return tableOf(async (slot, image) => {
    const wanted = `${image}-${slot}`
    const found = names.filter((entry) => entry.partName === wanted)
    const first = found[0]
    const listed = names.map((entry) => entry.partName).join(', ')
    if (first === undefined)
      throw slotErrors.SLOT_MISSING(`disk ${runningDisk} has no partition named ${wanted}; it has: ${listed || 'none'}`)
    if (found.length > 1)
      throw slotErrors.SLOT_AMBIGUOUS(
        `${found.map((entry) => entry.kernelName).join(' and ')} of disk ${runningDisk} are both named ${wanted}`,
      )
    return blockPlace(sys, `/dev/${first.kernelName}`, first.kernelName)
  })
}

/** Kernel names and sizes of all named partitions of a disk: also for finding `data` and `bootstate`. */
export async function partitionNames(
  sys: SysFs,
  disk: string,
): Promise<readonly { readonly kernelName: string; readonly partName: string }[]> {
  const found: { kernelName: string; partName: string }[] = []
  for (const kernelName of await sys.list('/sys/class/block')) {
    const uevent = await sys.read(`/sys/class/block/${kernelName}/uevent`)
    const partName = uevent
      ?.split('\n')
      .find((line) => line.startsWith('PARTNAME='))
      ?.slice('PARTNAME='.length)
    if (partName === undefined || partName === '') continue
    const place = await sys.resolve(`/sys/class/block/${kernelName}`)
    if (place?.parent === disk) found.push({ kernelName, partName })
  }
  return found
}

/**
 * The disk below a mount point (`/`, else `/data`), through device-mapper and loop-free: `vda`. Undefined when the
 * mounts tell nothing (a container, a network root).
 */
export async function findRunningDisk(sys: SysFs): Promise<string | undefined> {
  const mounts = parseMountInfo((await sys.read('/proc/self/mountinfo')) ?? '')
  for (const point of ['/', '/data']) {
    // The last mount on a point is the one that is seen.
    const device = mounts.filter((mount) => mount.point === point).at(-1)?.device
    const disk = device === undefined ? undefined : await diskOf(sys, device)
    if (disk !== undefined) return disk
  }
  return undefined
}

async function diskOf(sys: SysFs, device: string): Promise<string | undefined> {
  let found = await sys.resolve(`/sys/dev/block/${device}`)
  // A device-mapper device names what it stands on; depth is bounded, the kernel allows no loops.
  for (let depth = 0; depth < 8 && found !== undefined; depth++) {
    const below = (await sys.list(`/sys/class/block/${found.name}/slaves`))[0]
    if (below === undefined) break
    found = await sys.resolve(`/sys/class/block/${below}`)
  }
  if (found === undefined) return undefined
  const isPartition = (await sys.read(`/sys/class/block/${found.name}/partition`)) !== undefined
  return isPartition ? found.parent : found.name
}

/** Mounted devices as `major:minor`, with their mount points. Pure. */
export function parseMountInfo(text: string): readonly { readonly device: string; readonly point: string }[] {
  return text.split('\n').flatMap((line) => {
    const fields = line.split(' ')
    return fields[2] === undefined || fields[4] === undefined ? [] : [{ device: fields[2], point: fields[4] }]
  })
}

/**
 * Refuses a place that is mounted, held by another device, or the file behind a loop device (SLOT_IN_USE). The kernel
 * refuses a block device that is in use once more, when it is opened.
 */
export async function checkNotInUse(sys: SysFs, place: SlotPlace): Promise<void> {
  const users = place.kernelName === undefined ? await loopsOver(sys, place.path) : await usersOf(sys, place.kernelName)
  if (users.length > 0) throw slotErrors.SLOT_IN_USE(`${place.path} is in use: ${users.join(', ')}`)
}

async function usersOf(sys: SysFs, kernelName: string): Promise<readonly string[]> {
  const holders = await sys.list(`/sys/class/block/${kernelName}/holders`)
  const device = (await sys.read(`/sys/class/block/${kernelName}/dev`))?.trim()
  const mounts = parseMountInfo((await sys.read('/proc/self/mountinfo')) ?? '').filter((m) => m.device === device)
  return [...holders.map((holder) => `held by ${holder}`), ...mounts.map((mount) => `mounted on ${mount.point}`)]
}

async function loopsOver(sys: SysFs, path: string): Promise<readonly string[]> {
  const target = await realpath(path)
  const users: string[] = []
  for (const name of await sys.list('/sys/class/block')) {
    const backing = name.startsWith('loop') ? await sys.read(`/sys/class/block/${name}/loop/backing_file`) : undefined
    if (backing?.trim() === target) users.push(`behind /dev/${name}`)
  }
  return users
}

/**
 * Slot paths from the environment: BISTABLE_SLOT_A_BOOT, _A_ROOTFS, _B_BOOT, _B_ROOTFS; undefined when none is set.
 * @throws SLOT_CONFIG when only some are set
 */
export function slotPathsFromEnv(env: Readonly<Record<string, string | undefined>>): SlotPaths | undefined {
  const name = (slot: Slot, image: ImageName): string => `BISTABLE_SLOT_${slot}_${image}`.toUpperCase()
  const all = SLOTS.flatMap((slot) => IMAGE_NAMES.map((image) => name(slot, image)))
  const missing = all.filter((key) => (env[key] ?? '') === '')
  if (missing.length === all.length) return undefined
  if (missing.length > 0) throw slotErrors.SLOT_CONFIG(`${missing.join(', ')} not set, the other slot variables are`)
  const get = (slot: Slot, image: ImageName): string => env[name(slot, image)] ?? ''
  return {
    a: { boot: get('a', 'boot'), rootfs: get('a', 'rootfs') },
    b: { boot: get('b', 'boot'), rootfs: get('b', 'rootfs') },
  }
}

async function placesByPath(sys: SysFs, paths: SlotPaths): Promise<SlotTable> {
  const seen = new Set<string>()
  return tableOf(async (slot, image) => {
    const place = await placeAt(sys, paths[slot][image])
    const target = await realpath(place.path)
    if (seen.has(target)) throw slotErrors.SLOT_CONFIG(`${target} is given for two places`)
    seen.add(target)
    return place
  })
}

/** A place by its path: a block device or a file that exists, with its size. */
export async function placeAt(sys: SysFs, path: string): Promise<SlotPlace> {
  let found: Awaited<ReturnType<typeof stat>>
  let target: string
  try {
    target = await realpath(path)
    found = await stat(target)
  } catch (error) {
    throw slotErrors.SLOT_MISSING(`${path} is not there`, { cause: error })
  }
  if (found.isFile()) return { path, kind: 'file', size: found.size, kernelName: undefined }
  if (found.isBlockDevice()) return blockPlace(sys, path, basename(target))
  throw slotErrors.SLOT_MISSING(`${path} is neither a block device nor a file`)
}

async function blockPlace(sys: SysFs, path: string, kernelName: string): Promise<SlotPlace> {
  const sectors = (await sys.read(`/sys/class/block/${kernelName}/size`))?.trim()
  if (sectors === undefined || !/^\d+$/.test(sectors))
    throw slotErrors.SLOT_MISSING(`the kernel tells no size for ${kernelName}`)
  return { path, kind: 'block', size: Number(sectors) * SECTOR, kernelName }
}

async function tableOf(place: (slot: Slot, image: ImageName) => Promise<SlotPlace>): Promise<SlotTable> {
  const places = async (slot: Slot): Promise<SlotPlaces> => ({
    boot: await place(slot, 'boot'),
    rootfs: await place(slot, 'rootfs'),
  })
  return { a: await places('a'), b: await places('b') }
}
