import { HEAD_BYTES } from '../../bundle/squashfs/superblock.ts'

/** The head of an image: the superblock (Linux: fs/squashfs/squashfs_fs.h) and the compressor's options. Pure. */

/** Images are whole 4 KiB blocks: what loop devices and dm-verity take. */
export const PADDING = 4096
const MAGIC = 0x73717368
const ZSTD = 6
const NONE = 0xffff_ffff_ffff_ffffn
const FLAGS = { noFragments: 0x10, duplicates: 0x40, exportable: 0x80, noXattrs: 0x200, options: 0x400 } as const
/** The options as a metadata block of 4 bytes, stored plain. */
const OPTIONS_HEADER = 0x8004

/** What is known when all else is written. */
export interface ImageFacts {
  readonly inodes: number
  readonly ids: number
  readonly fragmentCount: number
  /** Reference of the root directory's inode. */
  readonly root: bigint
  readonly inodeTable: number
  readonly directoryTable: number
  readonly fragmentIndex: number
  readonly idIndex: number
  /** Undefined: there are none. */
  readonly xattrIndex: number | undefined
  readonly exportIndex: number | undefined
  /** Bytes without padding. */
  readonly used: number
  /** Short contents share blocks. */
  readonly fragments: boolean
}

export interface HeadOptions {
  readonly blockSize: number
  readonly level: number
  readonly time: number
}

/**
 * The first 102 bytes. The level is always written down, also when it is the one that mksquashfs leaves out.
 * @param facts undefined: zeros, to be written over
 */
export function encodeHead(facts: ImageFacts | undefined, { blockSize, level, time }: HeadOptions): Buffer {
  const b = Buffer.alloc(HEAD_BYTES)
  if (facts === undefined) return b
  b.writeUInt32LE(MAGIC)
  b.writeUInt32LE(facts.inodes, 4)
  b.writeUInt32LE(time, 8)
  b.writeUInt32LE(blockSize, 12)
  b.writeUInt32LE(facts.fragmentCount, 16)
  b.writeUInt16LE(ZSTD, 20)
  b.writeUInt16LE(Math.log2(blockSize), 22)
  b.writeUInt16LE(
    FLAGS.duplicates |
      FLAGS.options |
      (facts.fragments ? 0 : FLAGS.noFragments) |
      (facts.xattrIndex === undefined ? FLAGS.noXattrs : 0) |
      (facts.exportIndex === undefined ? 0 : FLAGS.exportable),
    24,
  )
  b.writeUInt16LE(facts.ids, 26)
  b.writeUInt16LE(4, 28)
  b.writeUInt16LE(0, 30)
  b.writeBigUInt64LE(facts.root, 32)
  b.writeBigUInt64LE(BigInt(facts.used), 40)
  b.writeBigUInt64LE(BigInt(facts.idIndex), 48)
  b.writeBigUInt64LE(facts.xattrIndex === undefined ? NONE : BigInt(facts.xattrIndex), 56)
  b.writeBigUInt64LE(BigInt(facts.inodeTable), 64)
  b.writeBigUInt64LE(BigInt(facts.directoryTable), 72)
  b.writeBigUInt64LE(BigInt(facts.fragmentIndex), 80)
  b.writeBigUInt64LE(facts.exportIndex === undefined ? NONE : BigInt(facts.exportIndex), 88)
  b.writeUInt16LE(OPTIONS_HEADER, 96)
  b.writeUInt32LE(level, 98)
  return b
}
