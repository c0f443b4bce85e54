import { closeSync, openSync, readSync, writeSync } from 'node:fs'

/**
 * Puts one file into the top folder of an empty exFAT image, as far as a test needs it: a name in ASCII, contiguous clusters.
 * There is no tool that does this without a mount. Layout: Microsoft's exFAT file system specification, sections 3, 6 and 7;
 * fsck.exfat says whether it is right.
 */
export function putIntoExfat(image: string, name: string, content: Uint8Array): void {
  const file = openSync(image, 'r+')
  try {
    const boot = read(file, 0, 512)
    const sector = 1 << boot.readUInt8(108)
    const cluster = sector << boot.readUInt8(109)
    const heap = boot.readUInt32LE(88) * sector
    const placeOf = (n: number) => heap + (n - 2) * cluster
    const root = placeOf(boot.readUInt32LE(96))
    const folder = read(file, root, cluster)
    let end = 0
    let bitmapAt = 0
    for (; folder[end] !== 0; end += 32) if (folder[end] === 0x81) bitmapAt = placeOf(folder.readUInt32LE(end + 20))
    // In an empty file system the clusters in use come first.
    const bitmap = read(file, bitmapAt, Math.ceil(boot.readUInt32LE(92) / 8))
    let first = 0
    while (((bitmap[first >> 3] ?? 0) & (1 << (first & 7))) !== 0) first++
    const clusters = Math.ceil(content.length / cluster)
    for (let n = first; n < first + clusters; n++) bitmap[n >> 3] = (bitmap[n >> 3] ?? 0) | (1 << (n & 7))
    writeSync(file, content, 0, content.length, placeOf(first + 2))
    writeSync(file, bitmap, 0, bitmap.length, bitmapAt)
    const entries = entriesOf(name, first + 2, content.length)
    writeSync(file, entries, 0, entries.length, root + end)
  } finally {
    closeSync(file)
  }
}

/** A file entry, a stream extension without a FAT chain, and the name, 15 characters an entry. */
function entriesOf(name: string, first: number, length: number): Buffer {
  const names = Math.ceil(name.length / 15)
  const set = Buffer.alloc((2 + names) * 32)
  set.writeUInt8(0x85, 0)
  set.writeUInt8(1 + names, 1)
  set.writeUInt16LE(0x20, 4)
  // 2026-01-01, for all three times.
  for (const at of [8, 12, 16]) set.writeUInt32LE((((46 << 9) | (1 << 5) | 1) << 16) >>> 0, at)
  set.writeUInt8(0xc0, 32)
  set.writeUInt8(0x03, 33)
  set.writeUInt8(name.length, 35)
  let hash = 0
  for (const byte of Buffer.from(name.toUpperCase(), 'utf16le'))
    hash = (((hash & 1) << 15) + (hash >> 1) + byte) & 0xffff
  set.writeUInt16LE(hash, 36)
  set.writeBigUInt64LE(BigInt(length), 40)
  set.writeUInt32LE(first, 52)
  set.writeBigUInt64LE(BigInt(length), 56)
  for (let n = 0; n < names; n++) {
    set.writeUInt8(0xc1, 64 + n * 32)
    set.write(name.slice(n * 15, n * 15 + 15), 66 + n * 32, 'utf16le')
  }
  let sum = 0
  for (const [i, byte] of set.entries()) if (i !== 2 && i !== 3) sum = (((sum & 1) << 15) + (sum >> 1) + byte) & 0xffff
  set.writeUInt16LE(sum, 2)
  return set
}

function read(file: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  readSync(file, bytes, 0, length, at)
  return bytes
}
