import { bootErrors } from './errors.ts'

/**
 * Reads files out of the root folder of a boot image: FAT16 as `publisher/fat.ts` makes it, names in 8.3 form. For
 * bootloaders that read one partition only, so that kernel and initramfs have to be copied there.
 */

/** Whole reads at any offset; throws when the medium does. */
export type ReadAt = (offset: number, length: number) => Promise<Uint8Array>

/** The boot image of a slot, opened for reading. */
export interface BootImage {
  readonly read: ReadAt
  close(): Promise<void>
}

export interface FatFile {
  readonly size: number
  /** The content, in pieces of at most 1 MiB. Throws BOOT_IMAGE_DAMAGED. */
  content(): AsyncIterable<Uint8Array>
}

const PIECE = 1 << 20
/** A boot image with more is none of ours. */
const MAX_BYTES = 512 << 20

/** Throws BOOT_IMAGE_DAMAGED when there is no such file or no such file system. */
export async function fatFile(read: ReadAt, name: string): Promise<FatFile> {
  const disk = await layout(read)
  const root = Buffer.from(await read(disk.root, disk.rootEntries * 32))
  for (let at = 0; at < root.length && root[at] !== 0; at += 32) {
    const entry = root.subarray(at, at + 32)
    // Deleted, a long name, a volume label or a folder.
    if (entry[0] === 0xe5 || ((entry[11] ?? 0) & 0x18) !== 0 || shortName(entry) !== name.toUpperCase()) continue
    const size = entry.readUInt32LE(28)
    const first = entry.readUInt16LE(26)
    if (size > MAX_BYTES) throw damaged(`${name} has ${size} bytes`)
    return { size, content: () => pieces(read, disk, first, size, name) }
  }
  throw damaged(`it has no ${name}`)
}

/** A small file whole. Throws BOOT_IMAGE_DAMAGED, also above `limit` bytes. */
export async function fatBytes(read: ReadAt, name: string, limit: number): Promise<Uint8Array> {
  const file = await fatFile(read, name)
  if (file.size > limit) throw damaged(`${name} has ${file.size} bytes`)
  const pieces: Uint8Array[] = []
  for await (const piece of file.content()) pieces.push(piece)
  return Buffer.concat(pieces)
}

interface Layout {
  readonly fat: Uint16Array
  readonly root: number
  readonly rootEntries: number
  readonly data: number
  readonly cluster: number
}

async function layout(read: ReadAt): Promise<Layout> {
  const boot = Buffer.from(await read(0, 512))
  const sector = boot.readUInt16LE(11)
  const [perCluster = 0, fats = 0] = [boot[13], boot[16]]
  const [reserved, rootEntries, fatSectors] = [boot.readUInt16LE(14), boot.readUInt16LE(17), boot.readUInt16LE(22)]
  const sane = [512, 1024, 2048, 4096].includes(sector) && perCluster > 0 && fats > 0 && rootEntries > 0
  if (boot.readUInt16LE(510) !== 0xaa55 || !sane || fatSectors === 0 || fatSectors * sector > 1 << 18)
    throw damaged('it has no FAT16 file system')
  const table = Buffer.from(await read(reserved * sector, fatSectors * sector))
  const fat = Uint16Array.from({ length: table.length / 2 }, (_, n) => table.readUInt16LE(n * 2))
  const root = (reserved + fats * fatSectors) * sector
  const data = root + Math.ceil((rootEntries * 32) / sector) * sector
  return { fat, root, rootEntries, data, cluster: perCluster * sector }
}

/** Neighbouring clusters are read together. */
async function* pieces(read: ReadAt, disk: Layout, first: number, size: number, name: string) {
  let [cluster, left] = [first, size]
  while (left > 0) {
    const start = cluster
    let length = 0
    do {
      if (cluster < 2 || cluster >= disk.fat.length) throw damaged(`${name} leads to cluster ${cluster}`)
      length += disk.cluster
      cluster = disk.fat[cluster] ?? 0
    } while (length < left && length < PIECE && cluster === start + length / disk.cluster)
    const take = Math.min(length, left)
    yield (await read(disk.data + (start - 2) * disk.cluster, length)).subarray(0, take)
    left -= take
  }
}

function shortName(entry: Buffer): string {
  const text = entry.toString('latin1', 0, 11)
  const [base, extension] = [text.slice(0, 8).trimEnd(), text.slice(8).trimEnd()]
  return extension === '' ? base : `${base}.${extension}`
}

function damaged(what: string): Error {
  return bootErrors.BOOT_IMAGE_DAMAGED(`the boot image cannot be used: ${what}`)
}
