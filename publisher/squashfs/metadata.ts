import { compressBlock } from '../../bundle/squashfs/block-codec.ts'

/** Metadata tables: streams of bytes cut into blocks of 8192 bytes, each compressed behind a 16-bit header. */

export const METADATA_BYTES = 8192
const STORED_PLAIN = 0x8000

/** A place in a table: where its stored block starts within the table, and the offset in the unpacked block. */
export interface Place {
  readonly block: number
  readonly offset: number
}

/** As inodes, xattr ids and the superblock hold it, in 48 bits of 64. */
export const referenceOf = ({ block, offset }: Place): bigint => (BigInt(block) << 16n) | BigInt(offset)

/** One table, held in memory as it will be stored. */
export class MetadataTable {
  readonly #level: number
  readonly #stored: Uint8Array[] = []
  #length = 0
  readonly #open = Buffer.alloc(METADATA_BYTES)
  #used = 0

  constructor(level: number) {
    this.#level = level
  }

  /** Where the next byte will stand. */
  get place(): Place {
    return { block: this.#length, offset: this.#used }
  }

  /** Appends `bytes`; gives the place of the first one. */
  append(bytes: Uint8Array): Place {
    const { place } = this
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + METADATA_BYTES - this.#used)
      this.#open.set(part, this.#used)
      this.#used += part.length
      at += part.length
      if (this.#used === METADATA_BYTES) this.#close()
    }
    return place
  }

  /** The table as stored, and where in it each block starts. Nothing can be appended afterwards. */
  finish(): { readonly bytes: Buffer; readonly starts: readonly number[] } {
    if (this.#used > 0) this.#close()
    const starts: number[] = []
    let at = 0
    for (const block of this.#stored) {
      starts.push(at)
      at += block.length
    }
    return { bytes: Buffer.concat(this.#stored), starts }
  }

  #close(): void {
    const { bytes, plain } = compressBlock(this.#open.subarray(0, this.#used), this.#level)
    const stored = Buffer.alloc(2 + bytes.length)
    stored.writeUInt16LE(bytes.length | (plain ? STORED_PLAIN : 0))
    stored.set(bytes, 2)
    this.#stored.push(stored)
    this.#length += stored.length
    this.#used = 0
  }
}

/**
 * A table of equal entries that is found through an array of pointers to its blocks, as it stands at `at` in the image:
 * blocks, then pointers.
 * @returns its bytes, and where in the image the array of pointers starts
 */
export function indexedTable(
  entries: Uint8Array,
  at: number,
  level: number,
): { readonly bytes: Buffer; readonly index: number } {
  const table = new MetadataTable(level)
  table.append(entries)
  const { bytes, starts } = table.finish()
  return { bytes: Buffer.concat([bytes, pointers(starts, at)]), index: at + bytes.length }
}

/** The array of absolute places of blocks that start at `starts` in a table at `at`. */
export function pointers(starts: readonly number[], at: number): Buffer {
  const out = Buffer.alloc(starts.length * 8)
  for (const [n, start] of starts.entries()) out.writeBigUInt64LE(BigInt(at + start), n * 8)
  return out
}
