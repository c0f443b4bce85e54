import type { InventoryEntry } from '../types.ts'
import { squashErrors } from './errors.ts'
import { type Cursor, type Position, u64 } from './metadata.ts'
import { corrupt } from './superblock.ts'
import { decodeText } from './text.ts'

/** Inodes: 7 types, each basic or extended (extended = basic + 7). */

export type EntryType = InventoryEntry['type']
/** By basic inode type number minus 1. */
const TYPES = ['dir', 'file', 'symlink', 'block', 'char', 'fifo', 'socket'] as const satisfies readonly EntryType[]

const NONE = 0xffffffff
/** PATH_MAX without its NUL; the kernel refuses longer targets too. */
const MAX_TARGET = 4095
/** 1 TiB: sparse content costs nothing to claim, so a claim needs a bound. */
export const MAX_FILE_BYTES = 2 ** 40

/** Where a file's content stands. */
export interface FileLayout {
  /** Offset in the image of the first stored block. */
  readonly start: number
  readonly size: number
  /** The last part of the file, inside a block shared with others. */
  readonly fragment: { readonly index: number; readonly offset: number } | undefined
  /** Where the sizes of the stored blocks are listed. */
  readonly sizes: Position
}

export interface DirectoryLayout {
  /** Block relative to the directory table, offset in the unpacked block. */
  readonly block: number
  readonly offset: number
  /** Bytes of the listing, plus 3. */
  readonly size: number
}

export interface Inode {
  readonly type: EntryType
  /** 0 .. 0o7777 */
  readonly mode: number
  readonly uidIndex: number
  readonly gidIndex: number
  readonly mtime: number
  readonly number: number
  readonly nlink: number
  readonly xattr: number | undefined
  readonly directory?: DirectoryLayout
  readonly file?: FileLayout
  readonly target?: string
  readonly rdev?: readonly [major: number, minor: number]
}

export function typeOf(number: number): EntryType {
  const type = TYPES[number - 1]
  if (type === undefined) throw corrupt(`inode type ${number}`)
  return type
}

/**
 * Reads the inode at the cursor.
 * @throws SQUASHFS_CORRUPT, SQUASHFS_TOO_LARGE, SQUASHFS_NAME
 */
export async function readInode(cursor: Cursor, inodes: number): Promise<Inode> {
  const head = await cursor.take(16)
  const number = head.readUInt32LE(12)
  if (number < 1 || number > inodes) throw corrupt(`inode number ${number} of ${inodes}`)
  const typeNumber = head.readUInt16LE(0)
  const extended = typeNumber > TYPES.length
  const type = typeOf(extended ? typeNumber - TYPES.length : typeNumber)
  const mode = head.readUInt16LE(2)
  if (mode > 0o7777) throw corrupt(`inode ${number} has mode 0${mode.toString(8)}`)
  return {
    type,
    mode,
    uidIndex: head.readUInt16LE(4),
    gidIndex: head.readUInt16LE(6),
    mtime: head.readUInt32LE(8),
    number,
    ...(await readBody(cursor, type, extended, number)),
  }
}

type Body = Pick<Inode, 'nlink' | 'xattr' | 'directory' | 'file' | 'target' | 'rdev'>

function readBody(cursor: Cursor, type: EntryType, extended: boolean, number: number): Promise<Body> {
  switch (type) {
    case 'dir':
      return readDirectory(cursor, extended)
    case 'file':
      return readFile(cursor, extended, number)
    case 'symlink':
      return readSymlink(cursor, extended, number)
    case 'char':
    case 'block':
      return readDevice(cursor, extended)
    case 'fifo':
    case 'socket':
      return readPlain(cursor, extended)
  }
}

async function readDirectory(cursor: Cursor, extended: boolean): Promise<Body> {
  if (!extended) {
    const b = await cursor.take(16)
    const directory = { block: b.readUInt32LE(0), offset: b.readUInt16LE(10), size: b.readUInt16LE(8) }
    return { nlink: b.readUInt32LE(4), xattr: undefined, directory }
  }
  const b = await cursor.take(24)
  const directory = { block: b.readUInt32LE(8), offset: b.readUInt16LE(18), size: b.readUInt32LE(4) }
  return { nlink: b.readUInt32LE(0), xattr: optional(b.readUInt32LE(20)), directory }
}

async function readFile(cursor: Cursor, extended: boolean, number: number): Promise<Body> {
  const b = await cursor.take(extended ? 40 : 16)
  const size = extended ? u64(b, 8) : b.readUInt32LE(12)
  if (size > MAX_FILE_BYTES) throw squashErrors.SQUASHFS_TOO_LARGE(`inode ${number} claims ${size} bytes`)
  const at = extended ? 28 : 4
  const index = optional(b.readUInt32LE(at))
  const file = {
    start: extended ? u64(b, 0) : b.readUInt32LE(0),
    size,
    fragment: index === undefined ? undefined : { index, offset: b.readUInt32LE(at + 4) },
    sizes: cursor.position,
  }
  return { nlink: extended ? b.readUInt32LE(24) : 1, xattr: extended ? optional(b.readUInt32LE(36)) : undefined, file }
}

async function readSymlink(cursor: Cursor, extended: boolean, number: number): Promise<Body> {
  const b = await cursor.take(8)
  const nlink = b.readUInt32LE(0)
  const length = b.readUInt32LE(4)
  if (length === 0 || length > MAX_TARGET) throw corrupt(`inode ${number} is a symlink of ${length} bytes`)
  const target = decodeText(await cursor.take(length), `the symlink of inode ${number}`)
  const xattr = extended ? optional((await cursor.take(4)).readUInt32LE(0)) : undefined
  return { nlink, xattr, target }
}

async function readDevice(cursor: Cursor, extended: boolean): Promise<Body> {
  const b = await cursor.take(extended ? 12 : 8)
  // Linux new_encode_dev: minor bits 0-7, major bits 8-19, minor bits 8-19 above.
  const dev = b.readUInt32LE(4)
  const rdev = [(dev >>> 8) & 0xfff, (dev & 0xff) | ((dev >>> 12) & 0xfff00)] as const
  return { nlink: b.readUInt32LE(0), xattr: extended ? optional(b.readUInt32LE(8)) : undefined, rdev }
}

async function readPlain(cursor: Cursor, extended: boolean): Promise<Body> {
  const b = await cursor.take(extended ? 8 : 4)
  return { nlink: b.readUInt32LE(0), xattr: extended ? optional(b.readUInt32LE(4)) : undefined }
}

function optional(index: number): number | undefined {
  return index === NONE ? undefined : index
}
