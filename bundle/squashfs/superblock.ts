import { DEFAULT_LEVEL, MAX_LEVEL, MIN_LEVEL } from './block-codec.ts'
import { squashErrors } from './errors.ts'

/** The first 96 bytes of an image (Linux: Documentation/filesystems/squashfs.rst, fs/squashfs/squashfs_fs.h). */

export const SUPERBLOCK_BYTES = 96
/** With a compressor's options behind them: a metadata block, never compressed, with one 32-bit word for zstd. */
export const HEAD_BYTES = SUPERBLOCK_BYTES + 6
const HAS_OPTIONS = 0x400
const ZSTD_OPTIONS = 0x8004
const MAGIC = 0x73717368
const MIN_BLOCK_LOG = 12
const MAX_BLOCK_LOG = 20
/** A limit of ours, far above real systems: it bounds the reader's bit set (2 MiB). */
export const MAX_INODES = 1 << 24

export type Compression = 'gzip' | 'zstd'
const COMPRESSIONS = [undefined, 'gzip', 'lzma', 'lzo', 'xz', 'lz4', 'zstd'] as const

/** A stretch of bytes of the image: `start` inclusive, `end` exclusive. */
export interface Region {
  readonly start: number
  readonly end: number
}

/** A table behind an array of 8-byte pointers: where the array starts, and how many entries the table has. */
export interface TablePlace {
  readonly index: number
  readonly count: number
}

export interface Superblock {
  readonly inodes: number
  /** Seconds since 1970. */
  readonly made: number
  /** 4096 .. 1048576, a power of two. */
  readonly blockSize: number
  readonly compression: Compression
  readonly flags: number
  /** Where the root directory's inode is: block relative to the inode table, offset in the unpacked block. */
  readonly root: { readonly block: number; readonly offset: number }
  /** Bytes of the image without padding. */
  readonly bytesUsed: number
  readonly inodeTable: Region
  readonly directoryTable: Region
  readonly fragments: TablePlace
  readonly ids: TablePlace
  /** Where the xattr id table's header stands; undefined when there are no xattrs. */
  readonly xattrHeader: number | undefined
  /** Where the export table's pointers stand. */
  readonly exportTable: number | undefined
}

/**
 * Reads and checks the superblock.
 * @param bytes the first 96 bytes
 * @param size bytes of the whole image, padding included
 * @throws SQUASHFS_FORMAT, SQUASHFS_COMPRESSION, SQUASHFS_TRUNCATED, SQUASHFS_CORRUPT, SQUASHFS_TOO_LARGE
 */
export function parseSuperblock(bytes: Uint8Array, size: number): Superblock {
  const b = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (b.length < SUPERBLOCK_BYTES || b.readUInt32LE(0) !== MAGIC)
    throw squashErrors.SQUASHFS_FORMAT('the file does not start with a SquashFS superblock')
  const version = `${b.readUInt16LE(28)}.${b.readUInt16LE(30)}`
  if (version !== '4.0') throw squashErrors.SQUASHFS_FORMAT(`the SquashFS version is ${version}, 4.0 was wanted`)
  const compression = compressionOf(b.readUInt16LE(20))
  const blockSize = b.readUInt32LE(12)
  const blockLog = b.readUInt16LE(22)
  if (blockLog < MIN_BLOCK_LOG || blockLog > MAX_BLOCK_LOG || blockSize !== 2 ** blockLog)
    throw corrupt(`block size ${blockSize} with logarithm ${blockLog}`)
  const bytesUsed = place(b, 40, Number.MAX_SAFE_INTEGER) ?? 0
  if (bytesUsed < SUPERBLOCK_BYTES) throw corrupt(`the image says it uses ${bytesUsed} bytes`)
  if (bytesUsed > size)
    throw squashErrors.SQUASHFS_TRUNCATED(`the image says it uses ${bytesUsed} bytes, ${size} are there`)
  const inodes = b.readUInt32LE(4)
  if (inodes === 0) throw corrupt('the image says it has no inodes')
  if (inodes > MAX_INODES) throw squashErrors.SQUASHFS_TOO_LARGE(`${inodes} inodes, at most ${MAX_INODES} are read`)

  const at = (offset: number) => place(b, offset, bytesUsed)
  const fragmentCount = b.readUInt32LE(16)
  const inodeStart = wanted(at(64), 'inode table')
  const directoryStart = wanted(at(72), 'directory table')
  const fragmentIndex = fragmentCount === 0 ? undefined : wanted(at(80), 'fragment table')
  const idIndex = wanted(at(48), 'id table')
  const xattrHeader = at(56)
  const exportTable = at(88)
  if (inodeStart < SUPERBLOCK_BYTES || inodeStart >= directoryStart) throw corrupt('the inode table is out of place')
  // Each stored fragment block takes at least one byte of the data area.
  if (fragmentCount > inodeStart) throw corrupt(`${fragmentCount} fragments in ${inodeStart} bytes`)
  const later = [fragmentIndex, idIndex, xattrHeader, exportTable].filter((start) => start !== undefined)
  const directoryEnd = Math.min(...later)
  if (directoryEnd < directoryStart) throw corrupt('the directory table is out of place')
  const idCount = b.readUInt16LE(26)
  if (idCount === 0) throw corrupt('the image has no user ids')
  const rootBlock = b.readUInt16LE(34) + b.readUInt32LE(36) * 65536
  return {
    inodes,
    made: b.readUInt32LE(8),
    blockSize,
    compression,
    flags: b.readUInt16LE(24),
    root: { block: rootBlock, offset: b.readUInt16LE(32) },
    bytesUsed,
    inodeTable: { start: inodeStart, end: directoryStart },
    directoryTable: { start: directoryStart, end: directoryEnd },
    fragments: { index: fragmentIndex ?? 0, count: fragmentCount },
    ids: { index: idIndex, count: idCount },
    xattrHeader,
    exportTable,
  }
}

/**
 * The zstd level that an image says it was made with; what mksquashfs then means when it says none; undefined for other
 * compressions and for options that are not zstd's.
 * @param head the first 102 bytes
 */
export function levelOf(head: Uint8Array, { compression, flags }: Superblock): number | undefined {
  if (compression !== 'zstd') return undefined
  if ((flags & HAS_OPTIONS) === 0) return DEFAULT_LEVEL
  const b = Buffer.from(head.buffer, head.byteOffset, head.byteLength)
  if (b.length < HEAD_BYTES || b.readUInt16LE(SUPERBLOCK_BYTES) !== ZSTD_OPTIONS) return undefined
  const level = b.readUInt32LE(SUPERBLOCK_BYTES + 2)
  return level >= MIN_LEVEL && level <= MAX_LEVEL ? level : undefined
}

function compressionOf(id: number): Compression {
  const name = COMPRESSIONS[id]
  if (name === 'gzip' || name === 'zstd') return name
  throw squashErrors.SQUASHFS_COMPRESSION(
    `the image is compressed with ${name ?? `method ${id}`}; zstd and gzip can be read`,
  )
}

/** A 64-bit offset below `limit`, or undefined when all bits are set ("not there"). */
function place(b: Buffer, at: number, limit: number): number | undefined {
  const value = b.readBigUInt64LE(at)
  if (value === 0xffff_ffff_ffff_ffffn) return undefined
  if (value > BigInt(limit)) throw corrupt(`the superblock points at byte ${value}, behind the end`)
  return Number(value)
}

function wanted(start: number | undefined, what: string): number {
  if (start === undefined) throw corrupt(`the ${what} is missing`)
  return start
}

export function corrupt(sentence: string, cause?: unknown) {
  return squashErrors.SQUASHFS_CORRUPT(sentence, cause === undefined ? {} : { cause })
}
