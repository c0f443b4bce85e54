import { MiB } from '../../base/bytes.ts'
import { compressBlock, type PackedBlock } from '../squashfs/block-codec.ts'
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

/** A chunk of a unit, as signed. */
export interface UnitChunk {
  readonly length: number
  /** False: only gone past. */
  readonly wanted: boolean
}

/** What compresses blocks, on this thread or others. */
export interface Compressor {
  /** The content is its own from there on. */
  pack(content: Uint8Array<ArrayBuffer>): Promise<PackedBlock>
  /** Memory for so many bytes of content, from blocks done with where there is some. What it holds is undefined. */
  memory(length: number): Uint8Array<ArrayBuffer>
}

/** Content at the compressors, and content of chunks that are begun before their turn: enough for some threads. */
const UNDER_WAY = 2 * MiB
const AHEAD = 2 * MiB

/** A chunk whose parts are there or on their way. */
interface Coming {
  readonly chunk: UnitChunk
  /** It ends where its last piece does. */
  readonly closed: boolean
  readonly parts: Promise<readonly Uint8Array[]>[]
  /** Bytes of its content. */
  held: number
}

export class UnitReader {
  readonly #old: OldImage
  readonly #codec: Codec
  readonly #compressor: Compressor
  readonly #target: Target
  readonly #words: VarintReader
  readonly #pieces: VarintReader
  readonly #chunks: readonly UnitChunk[]
  #read = 0
  readonly #ahead: Coming[] = []
  #held = 0
  #failure: unknown
  /** Blocks at the compressor, oldest first, and the content that they hold. */
  readonly #packing: Promise<unknown>[] = []
  #underWay = 0
  /** What the last piece had beyond its chunk. */
  #carry: Uint8Array = new Uint8Array(0)
  #copied = 0

  private constructor(
    old: OldImage,
    codec: Codec,
    streams: Streams,
    chunks: readonly UnitChunk[],
    compressor: Compressor,
  ) {
    this.#old = old
    this.#codec = codec
    this.#compressor = compressor
    this.#chunks = chunks
    this.#target = new Target(new OldWindow(old, readRows(streams.window)), streams)
    this.#words = new VarintReader(streams.chunks, 'chunks')
    this.#pieces = new VarintReader(streams.pieces, 'pieces')
  }

  /**
   * @param chunks all that the unit stands for, in its order
   * @throws DELTA_INVALID
   */
  static open(
    stored: Uint8Array,
    {
      old,
      codec,
      chunks,
      compressor,
    }: { old: OldImage; codec: Codec; chunks: readonly UnitChunk[]; compressor: Compressor },
  ): UnitReader {
    return new UnitReader(old, codec, unpackStreams(stored), chunks, compressor)
  }

  /**
   * The next chunk of the unit. Blocks of those behind it are begun meanwhile.
   * @returns undefined when it was not wanted, or comes out in another length
   * @throws DELTA_INVALID, what reading the old image throws, and what compressing does
   */
  async next(): Promise<Uint8Array | undefined> {
    while (this.#failure === undefined && this.#read < this.#chunks.length) {
      if (this.#ahead.length > 0 && this.#held >= AHEAD) break
      try {
        await this.#begin(this.#chunks[this.#read++] as UnitChunk)
      } catch (error) {
        // Met when its turn comes: what stands before it is good.
        this.#failure = error
      }
    }
    const coming = this.#ahead.shift()
    if (coming === undefined) throw this.#failure ?? invalid('a unit has fewer chunks than are asked for')
    const { chunk, closed, parts, held } = coming
    this.#held -= held
    const all = Buffer.concat([this.#carry, ...(await Promise.all(parts)).flat()])
    if (all.length > chunk.length + MiB) throw invalid('a chunk comes out far too long')
    this.#carry = closed ? new Uint8Array(0) : all.subarray(chunk.length)
    if (!chunk.wanted || all.length < chunk.length || (closed && all.length !== chunk.length)) return undefined
    return all.subarray(0, chunk.length)
  }

  async #begin(chunk: UnitChunk): Promise<void> {
    const word = this.#words.take(MAX_PIECES * 2)
    const closed = word % 2 === 1
    // The end of a chunk may lie inside a piece: then the length of this one matters for the next.
    const needed = chunk.wanted || !closed
    const coming: Coming = { chunk, closed, parts: [], held: 0 }
    let least = 0
    const there = (bytes: Uint8Array): void => {
      least += bytes.length
      coming.held += bytes.length
      if (least > chunk.length + MiB) throw invalid('a chunk comes out far too long')
      coming.parts.push(Promise.resolve([bytes]))
    }
    for (let left = (word - (word % 2)) / 2; left > 0; left--) {
      const piece = this.#pieces.take(MiB * 4 + 3)
      const kind = piece % 4
      const size = (piece - kind) / 4
      if (kind === PIECE.copy) {
        const copies = this.#copies(size)
        // Not even gone through when not needed: a few bytes can name millions.
        if (needed) for (const index of copies) there(await this.#old.stored(index))
        continue
      }
      const length = size > 0 ? size : kind === PIECE.data ? this.#codec.blockSize : METADATA_BYTES
      if (length > MiB || (kind === PIECE.meta && length > METADATA_BYTES)) throw invalid(`a piece of ${length} bytes`)
      const content = await this.#target.take(this.#compressor.memory(length))
      if (!needed) continue
      if (kind === PIECE.raw) there(content)
      else {
        coming.held += content.length
        coming.parts.push(this.#compress(content, kind === PIECE.meta))
        while (this.#underWay > UNDER_WAY) await this.#packing.shift()
      }
    }
    this.#ahead.push(coming)
    this.#held += coming.held
  }

  #copies(count: number): Iterable<number> {
    const first = this.#copied + this.#pieces.takeSigned(2 ** 40)
    if (count < 1 || first < 0 || first + count > this.#old.extents.count)
      throw invalid(`copies the pieces ${first} to ${first + count} of ${this.#old.extents.count}`)
    this.#copied = first + count
    return (function* () {
      for (let index = first; index < first + count; index++) yield index
    })()
  }

  #compress(content: Uint8Array<ArrayBuffer>, metadata: boolean): Promise<readonly Uint8Array[]> {
    const { length } = content
    this.#underWay += length
    const packed = this.#compressor.pack(content)
    const done = (): void => {
      this.#underWay -= length
    }
    // A failure is met when the chunk's turn comes; until then nobody waits for it.
    this.#packing.push(packed.then(done, done))
    const parts = packed.then((block) => placed(block, metadata))
    parts.catch(() => undefined)
    return parts
  }
}

/** A block as it stands in the image. */
export function rebuild(content: Uint8Array, metadata: boolean, level: number): Uint8Array[] {
  return placed(compressBlock(content, level), metadata)
}

function placed({ bytes, plain }: PackedBlock, metadata: boolean): Uint8Array[] {
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

  /** Fills `out` with the next bytes. @throws DELTA_INVALID */
  async take(out: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
    const { length } = out
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
