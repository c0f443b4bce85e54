import type { FileNode, StoredFile, StoredFragment } from './contents.ts'
import { directoryInode, fileInode, type InodeHead, type Listing, specialInode } from './inodes.ts'
import { writeListing } from './listing.ts'
import { indexedTable, MetadataTable, type Place, referenceOf } from './metadata.ts'
import type { ImageOutput } from './output.ts'
import type { Plan, PlannedDirectory, PlannedInode } from './plan.ts'
import type { ImageFacts } from './superblock.ts'
import { XattrTable } from './xattrs.ts'

/** Everything behind the data: inodes, listings, fragments, exports, ids, xattrs, in the order the kernel wants them. */

export interface TableOptions {
  readonly level: number
  readonly exportable: boolean
}

/**
 * Writes all tables at the end of `file`.
 * @throws SQUASHFS_ATTRIBUTE, SQUASHFS_LIMIT, SQUASHFS_WRITE
 */
export async function writeTables(
  plan: Plan,
  whereIs: (node: FileNode) => StoredFile,
  fragments: readonly StoredFragment[],
  file: ImageOutput,
  { level, exportable }: TableOptions,
): Promise<Omit<ImageFacts, 'used' | 'fragments'>> {
  const inodes = new InodeTable(plan, whereIs, level)
  const root = inodes.write(plan)
  const inodeTable = file.position
  await file.append(inodes.finish())
  const directoryTable = file.position
  await file.append(inodes.listings.finish().bytes)

  const entries = Buffer.alloc(fragments.length * 16)
  for (const [n, { at, word }] of fragments.entries()) {
    entries.writeBigUInt64LE(BigInt(at), n * 16)
    entries.writeUInt32LE(word, n * 16 + 8)
  }
  const fragmentIndex = await writeIndexed(entries, file, level)
  const exportIndex = exportable ? await writeIndexed(inodes.exports(), file, level) : undefined
  const ids = Buffer.alloc(plan.ids.length * 4)
  for (const [n, id] of plan.ids.entries()) ids.writeUInt32LE(id, n * 4)
  const idIndex = await writeIndexed(ids, file, level)
  const xattrs = inodes.xattrs.finish(file.position)
  if (xattrs !== undefined) await file.append(xattrs.bytes)
  return {
    inodes: plan.inodes,
    ids: plan.ids.length,
    fragmentCount: fragments.length,
    root: referenceOf(root),
    inodeTable,
    directoryTable,
    fragmentIndex,
    idIndex,
    xattrIndex: xattrs?.index,
    exportIndex,
  }
}

async function writeIndexed(entries: Uint8Array, file: ImageOutput, level: number): Promise<number> {
  const { bytes, index } = indexedTable(entries, file.position, level)
  await file.append(bytes)
  return index
}

class InodeTable {
  readonly listings: MetadataTable
  readonly xattrs: XattrTable
  readonly #table: MetadataTable
  readonly #whereIs: (node: FileNode) => StoredFile
  /** By inode number minus 1. */
  readonly #places: Place[] = []
  readonly #idIndex: ReadonlyMap<number, number>
  /** Listings written whose directory's inode is not. */
  readonly #listed = new Map<PlannedInode, Listing>()

  constructor(plan: Plan, whereIs: (node: FileNode) => StoredFile, level: number) {
    this.listings = new MetadataTable(level)
    this.xattrs = new XattrTable(level)
    this.#table = new MetadataTable(level)
    this.#whereIs = whereIs
    this.#idIndex = new Map(plan.ids.map((id, n) => [id, n]))
  }

  /** Writes all inodes and listings; gives the place of the root's inode. */
  write({ directories }: Plan): Place {
    let last: PlannedDirectory | undefined
    for (const directory of directories) {
      for (const { inode } of directory.children) this.#inode(inode)
      const children = directory.children.map(({ name, inode }) => ({
        name,
        type: inode.node.type,
        number: inode.number,
        place: this.#placeOf(inode),
      }))
      this.#listed.set(directory.inode, writeListing(this.listings, children, directory.parent, directory.path))
      last = directory
    }
    if (last === undefined) throw new RangeError('a tree without a root directory')
    this.#inode(last.inode)
    return this.#placeOf(last.inode)
  }

  finish(): Uint8Array {
    return this.#table.finish().bytes
  }

  /** References to all inodes, by number. */
  exports(): Buffer {
    const out = Buffer.alloc(this.#places.length * 8)
    for (const [n, place] of this.#places.entries()) out.writeBigUInt64LE(referenceOf(place), n * 8)
    return out
  }

  /** Writes an inode unless a hard link to it came before. */
  #inode(planned: PlannedInode): void {
    if (this.#places[planned.number - 1] !== undefined) return
    const { node, path } = planned
    const head: InodeHead = {
      ...planned,
      uidIndex: this.#idIndex.get(node.uid) ?? 0,
      gidIndex: this.#idIndex.get(node.gid) ?? 0,
      xattr: this.xattrs.add(node.xattrs, path),
    }
    this.#places[planned.number - 1] = this.#table.append(this.#encode(head, planned))
  }

  #encode(head: InodeHead, planned: PlannedInode): Buffer {
    const { node } = head
    if (node.type === 'file') return fileInode(head, node.size, this.#whereIs(node))
    if (node.type !== 'dir') return specialInode(head)
    const listing = this.#listed.get(planned)
    if (listing === undefined) throw new Error(`the directory '${head.path}' has no listing yet`)
    this.#listed.delete(planned)
    return directoryInode(head, listing)
  }

  #placeOf({ number, path }: PlannedInode): Place {
    const place = this.#places[number - 1]
    if (place === undefined) throw new Error(`the inode of '${path}' was not written`)
    return place
  }
}
