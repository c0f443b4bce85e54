import { createHash } from 'node:crypto'
import { humanBytes, MiB, roundUp } from '../../base/bytes.ts'
import { treeSize } from '../../bundle/tree.ts'
import { publisherErrors } from '../errors.ts'

/** Where everything stands on a disk: pure arithmetic over the table of docs/architecture.md, "Disk layout". */

export type PartitionName = 'esp' | 'bootstate' | 'boot-a' | 'rootfs-a' | 'boot-b' | 'rootfs-b' | 'data' | 'bios'

export type DataFileSystem = 'ext4' | 'btrfs'

export interface Partition {
  readonly number: number
  readonly name: PartitionName
  /** Bytes, multiples of 1 MiB but for `bios`. */
  readonly start: number
  readonly size: number
}

export interface DiskPlan {
  /** Bytes of the whole disk, a multiple of 1 MiB. */
  readonly size: number
  readonly partitions: readonly Partition[]
}

/** What the user asked for, in bytes; each may be left open. */
export interface DiskSizes {
  readonly disk?: number
  readonly boot?: number
  readonly rootfs?: number
  readonly data?: number
}

/** Lengths of what is to go in, in bytes. */
export interface DiskNeeds {
  readonly esp: number
  readonly bootstate: number
  readonly boot: number
  readonly rootfs: number
  /** Room for GRUB's core image behind the GPT, where a PC's BIOS is to start the disk. */
  readonly bios?: boolean
  readonly dataFileSystem?: DataFileSystem
}

/** Behind the GPT's first copy (34 sectors), in front of the first partition that is aligned. */
export const BIOS_START = 34 * 512

const DEFAULT_DATA = 512 * MiB
/** ext4 with a journal and room for a release's records. */
const MIN_DATA = 32 * MiB
/** mkfs.btrfs takes 109 MiB; snapshots want room. */
const MIN_BTRFS = 256 * MiB

/** Bytes that an image of `length` bytes takes in its slot: the image and its tree. */
export const slotNeed = (length: number): number => length + treeSize(length)

/**
 * Lays the disk out. A slot's size is for the life of the device, so the default leaves room: twice what this release
 * needs. With a disk size and no data size, data takes the rest.
 * @throws IMAGE_TOO_LARGE, DISK_TOO_SMALL
 */
export function planDisk(needs: DiskNeeds, sizes: DiskSizes): DiskPlan {
  const boot = slotSize('boot', needs.boot, sizes.boot, 32 * MiB)
  const rootfs = slotSize('rootfs', needs.rootfs, sizes.rootfs, 64 * MiB)
  const fixed: readonly (readonly [PartitionName, number])[] = [
    ['esp', roundUp(needs.esp, MiB)],
    ['bootstate', roundUp(needs.bootstate, MiB)],
    ['boot-a', boot],
    ['rootfs-a', rootfs],
    ['boot-b', boot],
    ['rootfs-b', rootfs],
  ]
  // 1 MiB before the first partition and one behind the last hold the two copies of the GPT.
  const taken = fixed.reduce((sum, [, size]) => sum + size, 2 * MiB)
  const disk = sizes.disk === undefined ? undefined : Math.floor(sizes.disk / MiB) * MiB
  const data = roundUp(sizes.data ?? (disk === undefined ? DEFAULT_DATA : Math.max(disk - taken, 0)), MiB)
  const least = needs.dataFileSystem === 'btrfs' ? MIN_BTRFS : MIN_DATA
  if (data < least || (disk !== undefined && taken + data > disk))
    throw publisherErrors.DISK_TOO_SMALL(
      `two slots and the rest take ${humanBytes(taken)}, data gets ${humanBytes(data)} (at least ${humanBytes(least)})` +
        (disk === undefined ? '' : `; the disk was to be ${humanBytes(disk)}`),
    )
  const partitions: Partition[] = []
  let start = MiB
  for (const [name, size] of [...fixed, ['data', data] as const]) {
    partitions.push({ number: partitions.length + 1, name, start, size })
    start += size
  }
  // The last number, so that those of the others are the same on every disk.
  if (needs.bios === true)
    partitions.push({ number: partitions.length + 1, name: 'bios', start: BIOS_START, size: MiB - BIOS_START })
  return { size: disk ?? start + MiB, partitions }
}

function slotSize(name: 'boot' | 'rootfs', length: number, asked: number | undefined, step: number): number {
  const need = slotNeed(length)
  const size = asked === undefined ? roundUp(need * 2, step) : Math.floor(asked / MiB) * MiB
  if (need > size)
    throw publisherErrors.IMAGE_TOO_LARGE(
      `the ${name} image with its tree takes ${need} bytes, the slot has ${size} (${humanBytes(size)})`,
      { details: { image: name, need, size } },
    )
  return size
}

export function partition(plan: DiskPlan, name: PartitionName): Partition {
  const found = plan.partitions.find((p) => p.name === name)
  if (found === undefined) throw new RangeError(`no partition ${name} in the plan`)
  return found
}

/** A UUID (RFC 9562, version 8) that follows from `identity` and `name` alone, so that a disk image is reproducible. Pure. */
export function derivedUuid(identity: string, name: string): string {
  const bytes = createHash('sha256').update(`bistable ${identity} ${name}`).digest().subarray(0, 16)
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6)
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8)
  const text = bytes.toString('hex')
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join('-')
}
