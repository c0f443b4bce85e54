import { squashErrors } from './errors.ts'
import { type DirectoryLayout, type EntryType, typeOf } from './inode.ts'
import { Cursor, type Metadata } from './metadata.ts'
import { corrupt, type Region } from './superblock.ts'
import { decodeText } from './text.ts'

/** What a directory says of one of its entries. */
export interface DirectoryEntry {
  readonly name: string
  /** The name's bytes, one character each: comparing these strings compares bytes. */
  readonly key: string
  readonly type: EntryType
  /** Inode number. */
  readonly number: number
  /** Where the inode is: block relative to the inode table, offset in the unpacked block. */
  readonly block: number
  readonly offset: number
}

/** A header introduces at most 256 entries. */
const MAX_RUN = 256
const MAX_NAME = 255
/** The size of a listing counts "." and "..", which are not stored, as 3 bytes. */
const DOTS = 3

/**
 * The entries of a directory, in strictly ascending byte order of their names (the kernel's look-up relies on it, so
 * another order is refused, and with it duplicates).
 * @throws SQUASHFS_CORRUPT, SQUASHFS_NAME
 */
export async function* readDirectory(
  metadata: Metadata,
  table: Region,
  directory: DirectoryLayout,
): AsyncGenerator<DirectoryEntry> {
  // An empty directory may point behind the end of the table.
  if (directory.size <= DOTS) return
  const position = { block: table.start + directory.block, offset: directory.offset }
  const cursor = new Cursor(metadata, table, position)
  let left = directory.size - DOTS
  let last = ''
  while (left > 0) {
    const head = await take(cursor, 12, left)
    left -= 12
    const run = head.readUInt32LE(0) + 1
    const block = head.readUInt32LE(4)
    const base = head.readUInt32LE(8)
    if (run > MAX_RUN) throw corrupt(`a directory header announces ${run} entries`)
    for (let n = 0; n < run; n++) {
      const fixed = await take(cursor, 8, left)
      const offset = fixed.readUInt16LE(0)
      const number = base + fixed.readInt16LE(2)
      const type = typeOf(fixed.readUInt16LE(4))
      const length = fixed.readUInt16LE(6) + 1
      if (length > MAX_NAME) throw squashErrors.SQUASHFS_NAME(`a name has ${length} bytes`)
      const bytes = await take(cursor, length, left - 8)
      left -= 8 + length
      const key = bytes.toString('latin1')
      if (key <= last) throw corrupt(`a directory has ${JSON.stringify(key)} after ${JSON.stringify(last)}`)
      last = key
      yield { name: decodeName(bytes, key), key, type, number, block, offset }
    }
  }
}

async function take(cursor: Cursor, length: number, left: number): Promise<Buffer> {
  if (length > left) throw corrupt(`a directory listing ends ${length - left} bytes too early`)
  return cursor.take(length)
}

function decodeName(bytes: Buffer, key: string): string {
  const name = decodeText(bytes, `the name ${JSON.stringify(key)}`)
  if (name === '.' || name === '..' || name.includes('/'))
    throw squashErrors.SQUASHFS_NAME(`${JSON.stringify(name)} cannot be a file's name`)
  return name
}
