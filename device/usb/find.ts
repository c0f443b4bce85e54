import { findRunningDisk } from '../slots/find.ts'
import type { SysFs } from '../slots/sys.ts'

/** Which disks may be sticks, from what the kernel says; needs no udev. */

export interface Stick {
  /** Kernel name: `sdb1`. */
  readonly name: string
  /** Another one when the stick was pulled and plugged in again, also under the same name. */
  readonly identity: string
}

/** A stick has few partitions; a table that names hundreds is no stick's. */
const MAX_STICKS = 16

/**
 * Removable and USB disks with their partitions, in order of name; a disk that has partitions is not one itself. The disk
 * that the system runs from is none, whatever it is.
 */
export async function findSticks(sys: SysFs): Promise<readonly Stick[]> {
  const running = await findRunningDisk(sys)
  const names = await sys.list('/sys/class/block')
  const found: (Stick & { readonly disk: string })[] = []
  for (const name of names) {
    const place = await sys.resolve(`/sys/class/block/${name}`)
    if (place === undefined) continue
    const isPartition = (await sys.read(`/sys/class/block/${name}/partition`)) !== undefined
    const disk = isPartition ? place.parent : name
    if (disk === running || !(await isRemovable(sys, disk))) continue
    found.push({ name, disk, identity: await identityOf(sys, name, disk) })
  }
  const split = new Set(found.filter(({ name, disk }) => name !== disk).map(({ disk }) => disk))
  return found
    .filter(({ name }) => !split.has(name))
    .slice(0, MAX_STICKS)
    .map(({ name, identity }) => ({ name, identity }))
}

/** A disk that a person named, if it is a disk and not the one that the system runs from. */
export async function namedStick(sys: SysFs, path: string): Promise<Stick | undefined> {
  const name = /^(?:\/dev\/)?([A-Za-z0-9_-]{1,64})$/.exec(path)?.[1]
  if (name === undefined) return undefined
  const place = await sys.resolve(`/sys/class/block/${name}`)
  if (place === undefined) return undefined
  const isPartition = (await sys.read(`/sys/class/block/${name}/partition`)) !== undefined
  const disk = isPartition ? place.parent : name
  if (disk === (await findRunningDisk(sys))) return undefined
  return { name, identity: await identityOf(sys, name, disk) }
}

async function isRemovable(sys: SysFs, disk: string): Promise<boolean> {
  if ((await sys.read(`/sys/class/block/${disk}/removable`))?.trim() === '1') return true
  // Many sticks and all USB disks say 0; then the bus they hang on tells.
  return (await sys.follow(`/sys/class/block/${disk}`))?.includes('/usb') === true
}

/** The kernel counts every disk that it ever saw; before 5.15 the size has to do. */
async function identityOf(sys: SysFs, name: string, disk: string): Promise<string> {
  const sequence = (await sys.read(`/sys/class/block/${disk}/diskseq`))?.trim() ?? 'old'
  const size = (await sys.read(`/sys/class/block/${name}/size`))?.trim() ?? '0'
  return `${name} ${sequence} ${size}`
}
