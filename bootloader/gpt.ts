import { bootErrors } from './errors.ts'
import type { ReadAt } from './fat-read.ts'

/** Where a named partition is, as EFI device paths say it. UEFI specification, 5.3 (GPT). */

export interface GptPartition {
  /** From 1. */
  readonly number: number
  /** The 16 bytes of its unique GUID, as on the disk. */
  readonly guid: Uint8Array
  /** In sectors. */
  readonly start: bigint
  readonly sectors: bigint
}

/**
 * The partition called `name`. Throws BOOT_DISK_TABLE when there is no GPT, or not exactly one such partition.
 * @param sector bytes of a sector of this disk
 */
export async function gptPartition(read: ReadAt, name: string, sector = 512): Promise<GptPartition> {
  const header = Buffer.from(await read(sector, 512))
  if (header.toString('latin1', 0, 8) !== 'EFI PART') throw wrong('the disk has no GPT')
  const [first, count, size] = [header.readBigUInt64LE(72), header.readUInt32LE(80), header.readUInt32LE(84)]
  if (count > 1024 || size < 128 || size > 1024 || size % 8 !== 0) throw wrong(`${count} entries of ${size} bytes`)
  const table = Buffer.from(await read(Number(first) * sector, Math.ceil((count * size) / sector) * sector))
  const found: GptPartition[] = []
  for (let n = 0; n < count; n++) {
    const entry = table.subarray(n * size, (n + 1) * size)
    const label = entry.toString('utf16le', 56, 128).replace(/\0.*$/s, '')
    if (label !== name || entry.subarray(0, 16).every((byte) => byte === 0)) continue
    const [start, end] = [entry.readBigUInt64LE(32), entry.readBigUInt64LE(40)]
    found.push({ number: n + 1, guid: Uint8Array.from(entry.subarray(16, 32)), start, sectors: end - start + 1n })
  }
  const [one] = found
  if (one === undefined || found.length > 1) throw wrong(`${found.length} partitions are called ${name}, wanted 1`)
  return one
}

function wrong(what: string): Error {
  return bootErrors.BOOT_DISK_TABLE(`the partition table: ${what}`)
}
