import { MiB } from '../../base/bytes.ts'
import { compressBlock } from '../squashfs/block-codec.ts'
import { invalid } from './head.ts'
import { type OldImage, OldWindow } from './old.ts'
import { type Streams, unpackStreams } from './streams.ts'
import { VarintReader } from './varint.ts'

/**
 * Rebuilds the chunks of one unit, in order. Bounded by the unit and a window's cache, whatever a patch says. What comes out
 * is as good as the patch: the caller compares it with the signed digest.
 */

/** How a piece of the new image is made; the low two bits of its number, the rest is its length. */
export const PIECE = { raw: 0, data: 1, meta: 2, copy: 3 } as const

export interface Codec {
  /** zstd level of the new image. */
  readonly level: number
  /** Content of a full block of data. */
  readonly blockSize: number
}

export const METADATA_BYTES = 8192
const MAX_PIECES = 1 << 16

export class UnitReader {
  readonly #old: OldImage
  readonly #codec: Codec
  readonly #target: Target
  readonly #chunks: VarintReader
  readonly #pieces: VarintReader
  /** What the last piece had beyond its chunk. */
  #carry: Uint8Array = new Uint8Array(0)
  #copied = 0

  private constructor(old: OldImage, codec: Codec, streams: Streams) {
    this.#old = old
    this.#codec = codec
    this.#target = new Target(new OldWindow(old, readRows(streams.window)), streams)
    this.#chunks = new VarintReader(streams.chunks, 'chunks')
    this.#pieces = new VarintReader(streams.pieces, 'pieces')
  }

  /** @throws DELTA_INVALID */
  static open(stored: Uint8Array, old: OldImage, codec: Codec): UnitReader {
    return new UnitReader(old, codec, unpackStreams(stored))
  }

  /**
   * The next chunk of the unit.
   * @param length bytes of the chunk, as signed
   * @param wanted false: only gone past
   * @returns undefined when it was not wanted, or comes out in another length
   * @throws DELTA_INVALID, and what reading the old image throws
   */
  async next(length: number, wanted: boolean): Promise<Uint8Array | undefined> {
    const word = this.#chunks.take(MAX_PIECES * 2)
    const closed = word % 2 === 1
    const parts: Uint8Array[] = [this.#carry]
    let total = this.#carry.length
    for (let left = (word - (word % 2)) / 2; left > 0; left--) {
      // The end of a chunk may lie inside a piece: then the length of this one matters for the next.
      for await (const part of this.#piece(wanted || !closed)) {
        total += part.length
        if (total > length + MiB) throw invalid('a chunk comes out far too long')
        if (wanted || !closed) parts.push(part)
      }
    }
    if (!wanted && closed) {
      this.#carry = new Uint8Array(0)
      return undefined
    }
    const all = Buffer.concat(parts)
    this.#carry = closed ? new Uint8Array(0) : all.subarray(length)
    if (!wanted || all.length < length || (closed && all.length !== length)) return undefined
    return all.subarray(0, length)
  }

  async *#piece(wanted: boolean): AsyncGenerator<Uint8Array> {
    const word = this.#pieces.take(MiB * 4 + 3)
    const kind = word % 4
    const size = (word - kind) / 4
    if (kind === PIECE.copy) {
      const first = this.#copied + this.#pieces.takeSigned(2 ** 40)
      if (size < 1 || first < 0 || first + size > this.#old.extents.count)
        throw invalid(`copies the pieces ${first} to ${first + size} of ${this.#old.extents.count}`)
      this.#copied = first + size
      for (let index = first; index < first + size; index++)
        yield wanted ? await this.#old.stored(index) : new Uint8Array(0)
      return
    }
    const length = size > 0 ? size : kind === PIECE.data ? this.#codec.blockSize : METADATA_BYTES
    if (length > MiB || (kind === PIECE.meta && length > METADATA_BYTES)) throw invalid(`a piece of ${length} bytes`)
    const content = await this.#target.take(length)
    if (kind === PIECE.raw) yield content
    else if (wanted) yield* rebuild(content, kind === PIECE.meta, this.#codec.level)
  }
}

/** A block of content as it stands in the image. */
export function rebuild(content: Uint8Array, metadata: boolean, level: number): Uint8Array[] {
  const { bytes, plain } = compressBlock(content, level)
  if (!metadata) return [bytes]
  const header = Buffer.alloc(2)
  header.writeUInt16LE(bytes.length | (plain ? 0x8000 : 0))
  return [header, bytes]
}

function readRows(stream: Uint8Array): { first: number; count: number }[] {
  const words = new VarintReader(stream, 'window')
  const rows: { first: number; count: number }[] = []
  let end = 0
  let total = 0
  while (!words.ended) {
    const first = end + words.take(2 ** 40)
    const count = words.take(MAX_PIECES)
    total += count
    if (total > MAX_PIECES) throw invalid('its window has too many pieces')
    rows.push({ first, count })
    end = first + count
  }
  return rows
}

/** The content of a unit's pieces: old bytes with differences added, and new ones between, in turn. */
class Target {
  readonly #window: OldWindow
  readonly #copies: VarintReader
  readonly #inserts: VarintReader
  readonly #seeks: VarintReader
  readonly #diff: Uint8Array
  readonly #extra: Uint8Array
  #at = 0
  #diffAt = 0
  #extraAt = 0
  #copyLeft = 0
  #insertLeft = 0

  constructor(window: OldWindow, streams: Streams) {
    this.#window = window
    this.#copies = new VarintReader(streams.copies, 'copies')
    this.#inserts = new VarintReader(streams.inserts, 'inserts')
    this.#seeks = new VarintReader(streams.seeks, 'seeks')
    this.#diff = streams.diff
    this.#extra = streams.extra
  }

  /** The next `length` bytes, in memory of their own. @throws DELTA_INVALID */
  async take(length: number): Promise<Uint8Array> {
    const out = Buffer.allocUnsafe(length)
    let done = 0
    while (done < length) {
      if (this.#copyLeft > 0) {
        const old = await this.#window.from(this.#at)
        const count = Math.min(old.length, this.#copyLeft, length - done)
        this.#add(out, done, old, count)
        this.#copyLeft -= count
        done += count
      } else if (this.#insertLeft > 0) {
        const count = Math.min(this.#insertLeft, length - done)
        out.set(this.#extra.subarray(this.#extraAt, this.#extraAt + count), done)
        this.#extraAt += count
        this.#insertLeft -= count
        done += count
      } else this.#order()
    }
    return out
  }

  #add(out: Uint8Array, at: number, old: Uint8Array, count: number): void {
    const diff = this.#diff
    const from = this.#diffAt
    for (let i = 0; i < count; i++) out[at + i] = (old[i] ?? 0) + (diff[from + i] ?? 0)
    this.#diffAt += count
    this.#at += count
  }

  #order(): void {
    this.#at += this.#seeks.takeSigned(2 ** 40)
    this.#copyLeft = this.#copies.take(this.#diff.length - this.#diffAt)
    this.#insertLeft = this.#inserts.take(this.#extra.length - this.#extraAt)
    if (this.#copyLeft + this.#insertLeft === 0) throw invalid('an order for nothing')
  }
}
