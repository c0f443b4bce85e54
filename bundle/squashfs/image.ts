import { unpacker } from './codec.ts'
import { Boundaries, Content, type StoredBlock } from './content.ts'
import { type EntryType, type Inode, readInode } from './inode.ts'
import { Cursor, IndexedTable, Metadata } from './metadata.ts'
import { type BlockReader, Window } from './reader.ts'
import { corrupt, HEAD_BYTES, levelOf, parseSuperblock, SUPERBLOCK_BYTES, type Superblock } from './superblock.ts'
import { type Found, findInode, listNames, type WalkParts, walkImage } from './walk.ts'
import { type Xattrs, XattrTable } from './xattr.ts'

/** A path of an image with everything known about it but the content. */
export interface SquashEntry {
  /** Without a leading slash: "usr/bin/env"; the root directory is "". */
  readonly path: string
  readonly type: EntryType
  /** Permission bits, 0 .. 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970. */
  readonly mtime: number
  /** Bytes of content of a file; 0 for all else. */
  readonly size: number
  /** Of a symlink. */
  readonly target?: string
  /** Of a char or block device. */
  readonly rdev?: readonly [major: number, minor: number]
  /** Name to exact value, in byte order of the names; shared between entries. */
  readonly xattrs: Xattrs
  /** Inode number: the same for hard links. */
  readonly inode: number
  readonly nlink: number
}

/** An open image. One user at a time reads fastest; several at once are safe. */
export interface Squashfs {
  readonly superblock: Superblock
  /** The zstd level its blocks were compressed with, as `compressBlock` takes it; undefined when that is not known. */
  readonly level: number | undefined
  /** Every path, a directory before its contents, in byte order of the paths; with `from` ("etc") that one and all below. */
  walk(from?: string): AsyncIterable<SquashEntry>
  /**
   * The content of a file from `walk` or `lookup` of this image, in pieces of at most one block (1 MiB at most), as
   * views that must not be changed. Empty for all that is not a file.
   */
  read(entry: SquashEntry): AsyncIterable<Uint8Array>
  /** The entry at "/usr/bin/env" or "usr/bin/env"; symlinks are not followed; undefined when there is none. */
  lookup(path: string): Promise<SquashEntry | undefined>
  /** The names in a directory, in byte order; none for all that is not a directory. */
  names(entry: SquashEntry): Promise<readonly string[]>
  /** Offsets in the image, ascending, each once, where a stored data or fragment block or a metadata table starts. */
  contentBoundaries(): Promise<number[]>
  /** Every stored data and fragment block; one that several files share comes several times. */
  storedBlocks(): AsyncIterable<StoredBlock>
  /** Those with the content of one file; the last may be a fragment block. */
  storedOf(entry: SquashEntry): AsyncIterable<StoredBlock>
  /** Bytes behind the data area as they are: `at` is not in front of the inode table, `length` is at most 64 KiB. */
  raw(at: number, length: number): Promise<Uint8Array>
}

/**
 * Opens a SquashFS 4.0 image (zstd, gzip or uncompressed blocks). Nothing the image says is believed: every offset,
 * length and count is checked before it is used, and memory is bounded whatever the image holds (about 20 MiB, more
 * only for directories of very many entries).
 * @param reader gives the image's bytes; its errors pass through
 * @param size bytes of the image, padding included
 * @throws SQUASHFS_FORMAT, SQUASHFS_COMPRESSION, SQUASHFS_TRUNCATED, SQUASHFS_CORRUPT, SQUASHFS_TOO_LARGE;
 *   the same, SQUASHFS_LOOP and SQUASHFS_NAME from all that reads further
 */
export async function openSquashfs(reader: BlockReader, size: number): Promise<Squashfs> {
  const head = await reader.read(0, Math.min(HEAD_BYTES, size))
  const superblock = parseSuperblock(head, size)
  const { bytesUsed, inodeTable, directoryTable } = superblock
  const unpack = unpacker(superblock.compression)
  const metadata = new Metadata(new Window(reader, { start: inodeTable.start, end: bytesUsed }), unpack)
  const ids = new IndexedTable(metadata, superblock.ids, 4, 'id')
  const fragments = new IndexedTable(metadata, superblock.fragments, 16, 'fragment')
  const xattrs = await XattrTable.open(metadata, superblock)
  const data = { start: SUPERBLOCK_BYTES, end: inodeTable.start }
  const blocks = new Window(reader, data)
  const tails = new Window(reader, data)
  const content = new Content({ superblock, metadata, fragments, blocks, tails, unpack })
  const inodes = new WeakMap<SquashEntry, Inode>()

  async function inodeAt(at: { readonly block: number; readonly offset: number }): Promise<Inode> {
    const cursor = new Cursor(metadata, inodeTable, { block: inodeTable.start + at.block, offset: at.offset })
    return readInode(cursor, superblock.inodes)
  }

  async function entryOf(path: string, inode: Inode): Promise<SquashEntry> {
    if (inode.xattr !== undefined && xattrs === undefined)
      throw corrupt(`inode ${inode.number} has xattrs, the image has none`)
    const entry: SquashEntry = {
      path,
      type: inode.type,
      mode: inode.mode,
      uid: (await ids.entry(inode.uidIndex)).readUInt32LE(0),
      gid: (await ids.entry(inode.gidIndex)).readUInt32LE(0),
      mtime: inode.mtime,
      size: inode.file?.size ?? 0,
      ...(inode.target !== undefined && { target: inode.target }),
      ...(inode.rdev !== undefined && { rdev: inode.rdev }),
      xattrs: (await xattrs?.get(inode.xattr)) ?? new Map(),
      inode: inode.number,
      nlink: inode.nlink,
    }
    inodes.set(entry, inode)
    return entry
  }

  function inodeOf(entry: SquashEntry): Inode {
    const inode = inodes.get(entry)
    if (inode === undefined) throw new TypeError(`${entry.path} is not an entry of this image`)
    return inode
  }

  const parts: WalkParts = { superblock, metadata, inodeAt }

  async function* storedBlocks(): AsyncGenerator<StoredBlock> {
    for await (const { inode } of walkImage(parts)) yield* content.stored(inode)
    yield* content.storedFragments()
  }

  async function contentBoundaries(): Promise<number[]> {
    const found = new Boundaries()
    for await (const { at } of storedBlocks()) found.add(at)
    const tables = [
      inodeTable.start,
      directoryTable.start,
      await fragments.start(),
      await ids.start(),
      xattrs?.start,
      superblock.exportTable,
    ]
    for (const at of tables) if (at !== undefined && at < bytesUsed) found.add(at)
    // Inodes and listings: where one changes, those in front of it often stay.
    for await (const at of metadata.starts({ start: inodeTable.start, end: directoryTable.end })) found.add(at)
    return found.sorted()
  }

  return {
    superblock,
    level: levelOf(head, superblock),
    walk: (from) => mapFound(walkImage(parts, from), entryOf),
    read: (entry) => content.read(inodeOf(entry)),
    async lookup(path) {
      const inode = await findInode(parts, path)
      return inode === undefined ? undefined : entryOf(path.split('/').filter(Boolean).join('/'), inode)
    },
    names: (entry) => listNames(parts, inodeOf(entry)),
    contentBoundaries,
    storedBlocks,
    async *storedOf(entry) {
      yield* content.stored(inodeOf(entry))
      const tail = await content.tail(inodeOf(entry))
      if (tail !== undefined) yield tail
    },
    raw: (at, length) => metadata.raw(at, length),
  }
}

async function* mapFound(
  found: AsyncIterable<Found>,
  entryOf: (path: string, inode: Inode) => Promise<SquashEntry>,
): AsyncGenerator<SquashEntry> {
  for await (const { path, inode } of found) yield entryOf(path, inode)
}
