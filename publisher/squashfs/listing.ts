import type { TreeNode } from '../tree.ts'
import { squashWriterErrors } from './errors.ts'
import { type Listing, typeNumber } from './inodes.ts'
import { METADATA_BYTES, type MetadataTable, type Place } from './metadata.ts'

/** Directory listings: runs of entries behind headers, and an index where a listing is long. */

/** A header introduces at most this many entries. */
const MAX_RUN = 256
const MAX_NAME = 255
const MAX_INDEX = 0xffff

export interface Child {
  readonly name: string
  readonly type: TreeNode['type']
  readonly number: number
  /** Where its inode is. */
  readonly place: Place
}

/**
 * Writes a listing.
 * @param children in byte order of their names
 * @param path of the directory, for messages
 * @throws SQUASHFS_LIMIT
 */
export function writeListing(table: MetadataTable, children: readonly Child[], parent: number, path: string): Listing {
  const { block, offset } = table.place
  // A listing within one block's length gets no index, and nothing in it depends on where it stands.
  const long = children.reduce((sum, { name }) => sum + 8 + Buffer.byteLength(name), 0) > METADATA_BYTES
  const index: Buffer[] = []
  let bytes = 0
  let indexed = 0
  for (let at = 0; at < children.length; ) {
    const { place } = table
    const run = takeRun(children, at, long ? METADATA_BYTES - place.offset : Number.POSITIVE_INFINITY, path)
    // The kernel starts a look-up at the last header whose first name is not behind the wanted one. One per block is
    // enough; the listing's own start needs none.
    const here = Math.floor((offset + bytes) / METADATA_BYTES)
    if (long && here > indexed && index.length < MAX_INDEX) {
      index.push(indexEntry(bytes, place.block, run.first))
      indexed = here
    }
    table.append(run.bytes)
    bytes += run.bytes.length
    at += run.count
  }
  if (bytes > 0xffffffff - 3)
    throw squashWriterErrors.SQUASHFS_LIMIT(`the directory /${path} has ${bytes} bytes of names`)
  return { block, offset, bytes, parent, index: Buffer.concat(index), indexCount: index.length }
}

/** One header with as many entries as go under it, ending with the one that reaches over the end of the block. */
function takeRun(
  children: readonly Child[],
  from: number,
  room: number,
  path: string,
): { readonly bytes: Buffer; readonly count: number; readonly first: Buffer } {
  const head = Buffer.alloc(12)
  const pieces: Buffer[] = [head]
  const base = children[from]
  let length = head.length
  let first = head
  let at = from
  for (; at < children.length && at - from < MAX_RUN && (at === from || length < room); at++) {
    const child = children[at]
    if (child === undefined || base === undefined) break
    const difference = child.number - base.number
    if (child.place.block !== base.place.block || difference > 0x7fff || difference < -0x8000) break
    const name = Buffer.from(child.name)
    if (name.length === 0 || name.length > MAX_NAME)
      throw squashWriterErrors.SQUASHFS_LIMIT(
        `/${path} holds a name of ${name.length} bytes, 1 to ${MAX_NAME} can be held`,
      )
    const entry = Buffer.alloc(8)
    entry.writeUInt16LE(child.place.offset)
    entry.writeInt16LE(difference, 2)
    entry.writeUInt16LE(typeNumber(child.type), 4)
    entry.writeUInt16LE(name.length - 1, 6)
    if (at === from) first = name
    pieces.push(entry, name)
    length += entry.length + name.length
  }
  head.writeUInt32LE(at - from - 1)
  head.writeUInt32LE(base?.place.block ?? 0, 4)
  head.writeUInt32LE(base?.number ?? 0, 8)
  return { bytes: Buffer.concat(pieces, length), count: at - from, first }
}

/** Which name stands first behind the header at byte `at` of the listing, and in which block that header is. */
function indexEntry(at: number, block: number, name: Buffer): Buffer {
  const entry = Buffer.alloc(12)
  entry.writeUInt32LE(at)
  entry.writeUInt32LE(block, 4)
  entry.writeUInt32LE(name.length - 1, 8)
  return Buffer.concat([entry, name])
}
