import type { TreeNode } from '../tree.ts'
import type { StoredFile } from './contents.ts'
import { squashWriterErrors } from './errors.ts'

/** Inodes as bytes: basic where that suffices, extended where an attribute or a size wants it. Pure. */

/** By basic inode type number minus 1; extended ones are 7 more. */
const TYPES = ['dir', 'file', 'symlink', 'block', 'char', 'fifo'] as const satisfies readonly TreeNode['type'][]
const EXTENDED = 7
const NONE = 0xffffffff
const MAX_TARGET = 4095

/** What all inodes have. */
export interface InodeHead {
  readonly node: TreeNode
  /** Of one of its paths, for messages. */
  readonly path: string
  readonly number: number
  readonly nlink: number
  readonly uidIndex: number
  readonly gidIndex: number
  /** Number of the set of xattrs; 0xffffffff for none. */
  readonly xattr: number
}

/** Where a directory's listing stands. */
export interface Listing {
  readonly block: number
  readonly offset: number
  /** Bytes of the listing. */
  readonly bytes: number
  readonly parent: number
  /** The index over a long listing, as stored. */
  readonly index: Uint8Array
  readonly indexCount: number
}

export function typeNumber(type: TreeNode['type']): number {
  return TYPES.indexOf(type) + 1
}

/** A directory; its listing must be written already. */
export function directoryInode(head: InodeHead, listing: Listing): Buffer {
  // "." and ".." are not stored and count as 3 bytes.
  const size = listing.bytes + 3
  if (head.xattr === NONE && listing.indexCount === 0 && size <= 0xffff) {
    const body = start(head, false, 16)
    body.writeUInt32LE(listing.block, 16)
    body.writeUInt32LE(head.nlink, 20)
    body.writeUInt16LE(size, 24)
    body.writeUInt16LE(listing.offset, 26)
    body.writeUInt32LE(listing.parent, 28)
    return body
  }
  const body = start(head, true, 24)
  body.writeUInt32LE(head.nlink, 16)
  body.writeUInt32LE(size, 20)
  body.writeUInt32LE(listing.block, 24)
  body.writeUInt32LE(listing.parent, 28)
  body.writeUInt16LE(listing.indexCount, 32)
  body.writeUInt16LE(listing.offset, 34)
  body.writeUInt32LE(head.xattr, 36)
  return Buffer.concat([body, listing.index])
}

/** A regular file. */
export function fileInode(head: InodeHead, size: number, { start: at, words, fragment, sparse }: StoredFile): Buffer {
  const sizes = Buffer.from(words.buffer, words.byteOffset, words.byteLength)
  const basic = head.xattr === NONE && head.nlink === 1 && sparse === 0 && at <= 0xffffffff && size <= 0xffffffff
  if (basic) {
    const body = start(head, false, 16)
    body.writeUInt32LE(at, 16)
    body.writeUInt32LE(fragment?.index ?? NONE, 20)
    body.writeUInt32LE(fragment?.offset ?? 0, 24)
    body.writeUInt32LE(size, 28)
    return Buffer.concat([body, sizes])
  }
  const body = start(head, true, 40)
  body.writeBigUInt64LE(BigInt(at), 16)
  body.writeBigUInt64LE(BigInt(size), 24)
  // A file that is all holes must not look as if it took no space at all.
  body.writeBigUInt64LE(BigInt(Math.min(sparse, Math.max(0, size - 1))), 32)
  body.writeUInt32LE(head.nlink, 40)
  body.writeUInt32LE(fragment?.index ?? NONE, 44)
  body.writeUInt32LE(fragment?.offset ?? 0, 48)
  body.writeUInt32LE(head.xattr, 52)
  return Buffer.concat([body, sizes])
}

/** A symlink, device or FIFO. @throws SQUASHFS_ATTRIBUTE */
export function specialInode(head: InodeHead): Buffer {
  const { node, nlink, xattr, path } = head
  const extended = xattr !== NONE
  const tail = Buffer.alloc(extended ? 4 : 0)
  if (extended) tail.writeUInt32LE(xattr)
  if (node.type === 'symlink') {
    const target = Buffer.from(node.target)
    if (target.length === 0 || target.length > MAX_TARGET)
      throw refused(path, `is a symbolic link of ${target.length} bytes, 1 to ${MAX_TARGET} can be held`)
    const body = start(head, extended, 8)
    body.writeUInt32LE(nlink, 16)
    body.writeUInt32LE(target.length, 20)
    return Buffer.concat([body, target, tail])
  }
  if (node.type !== 'char' && node.type !== 'block') {
    const body = start(head, extended, 4)
    body.writeUInt32LE(nlink, 16)
    return Buffer.concat([body, tail])
  }
  const [major, minor] = node.rdev
  if (major > 0xfff || minor > 0xfffff || major < 0 || minor < 0)
    throw refused(path, `is device ${major},${minor}; at most 4095,1048575 can be held`)
  const body = start(head, extended, 8)
  body.writeUInt32LE(nlink, 16)
  // As the kernel's new_encode_dev: 8 bits of the minor number, 12 of the major, 12 more of the minor.
  body.writeUInt32LE(((minor & 0xff) | (major << 8) | ((minor & 0xfff00) << 12)) >>> 0, 20)
  return Buffer.concat([body, tail])
}

/** The 16 bytes that all inodes begin with, and room for `more`. @throws SQUASHFS_ATTRIBUTE */
function start({ node, path, number, uidIndex, gidIndex }: InodeHead, extended: boolean, more: number): Buffer {
  const { mtime, mode } = node
  if (!Number.isInteger(mtime) || mtime < 0 || mtime > 0xffffffff)
    throw refused(path, `was changed at ${mtime} seconds since 1970; whole ones in 32 bits can be held`)
  const body = Buffer.alloc(16 + more)
  body.writeUInt16LE(typeNumber(node.type) + (extended ? EXTENDED : 0))
  body.writeUInt16LE(mode & 0o7777, 2)
  body.writeUInt16LE(uidIndex, 4)
  body.writeUInt16LE(gidIndex, 6)
  body.writeUInt32LE(mtime, 8)
  body.writeUInt32LE(number, 12)
  return body
}

function refused(path: string, how: string): Error {
  return squashWriterErrors.SQUASHFS_ATTRIBUTE(`/${path} ${how}`)
}
