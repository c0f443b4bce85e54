import { METADATA_BYTES, PIECE, rebuild } from '../../bundle/delta/apply.ts'
import type { ChunkRun } from '../../bundle/delta/head.ts'
import { KEPT_CONTENT, type OldImage } from '../../bundle/delta/old.ts'
import type { Streams } from '../../bundle/delta/streams.ts'
import { VarintWriter } from '../../bundle/delta/varint.ts'
import type { Chunk } from '../../bundle/types.ts'
import { match } from './match.ts'
import { type OldSources, type Place, tablesOf } from './sources.ts'

/** Content that a unit describes. */
const MAX_TARGET = 16 * 1024 * 1024
/** Old content that it is described by: what a device holds of it at a time. */
const MAX_WINDOW = KEPT_CONTENT
/** What the pieces of one more chunk may still ask for. */
const ROOM = 2 * 1024 * 1024

/** What the new image's blocks are compressed with. */
export interface UnitCodec {
  readonly level: number
  readonly blockSize: number
}

/** Gathers pieces of the new image, chunk by chunk, then describes them by the old one. */
export class UnitBuilder {
  readonly #old: OldSources
  readonly #new: OldImage
  readonly #codec: UnitCodec
  readonly #places: ReadonlyMap<number, readonly Place[]>
  readonly #tables: number
  readonly #runs: { first: number; count: number }[] = []
  readonly #window = new Set<number>()
  readonly #chunks = new VarintWriter()
  readonly #pieces = new VarintWriter()
  readonly #target: Uint8Array[] = []
  #targetLength = 0
  #windowLength = 0
  #copied = 0
  #packed = 0
  #copy: { first: number; count: number } | undefined

  constructor(old: OldSources, next: OldImage, codec: UnitCodec, places: ReadonlyMap<number, readonly Place[]>) {
    this.#old = old
    this.#new = next
    this.#codec = codec
    this.#places = places
    this.#tables = tablesOf(next)
  }

  get empty(): boolean {
    return this.#runs.length === 0
  }

  get full(): boolean {
    return this.#targetLength >= MAX_TARGET || this.#windowLength >= MAX_WINDOW - ROOM
  }

  /** Bytes of content that a device compresses. */
  get packed(): number {
    return this.#packed
  }

  get runs(): readonly ChunkRun[] {
    return this.#runs
  }

  /**
   * Adds a chunk.
   * @param closed the chunk ends where an extent ends
   * @param pieces numbers of extents of the new image that begin in it
   */
  async add(number: number, chunk: Chunk, pieces: readonly number[], closed: boolean): Promise<void> {
    const last = this.#runs.at(-1)
    if (last !== undefined && last.first + last.count === number) last.count++
    else this.#runs.push({ first: number, count: 1 })
    let count = 0
    for (const index of pieces) count += await this.#piece(index, chunk)
    this.#flushCopy()
    this.#chunks.put(count * 2 + (closed ? 1 : 0))
  }

  /** @returns how many pieces it became: one that goes on a row of copies is no new one */
  async #piece(index: number, chunk: Chunk): Promise<number> {
    const { at, length, kind } = this.#new.extents.get(index)
    const stored = await this.#new.stored(index)
    if (kind === 'raw') {
      const from = Math.max(0, chunk.offset - at)
      const part = stored.subarray(from, Math.min(length, chunk.offset + chunk.length - at))
      this.#flushCopy()
      this.#put(PIECE.raw, part.length, part.length, part, index)
      return 1
    }
    const same = this.#old.same(stored)
    if (same !== undefined) {
      if (this.#copy !== undefined && this.#copy.first + this.#copy.count === same) {
        this.#copy.count++
        return 0
      }
      this.#flushCopy()
      this.#copy = { first: same, count: 1 }
      return 1
    }
    this.#flushCopy()
    const content = await this.#new.exact(index)
    const again = Buffer.concat(rebuild(content, kind === 'meta', this.#codec.level))
    if (!again.equals(stored)) {
      // By a writer with another compressor: its stored bytes are all there is to go by.
      this.#put(PIECE.raw, stored.length, stored.length, stored, index)
      return 1
    }
    const full = kind === 'meta' ? METADATA_BYTES : this.#codec.blockSize
    this.#packed += content.length
    this.#put(kind === 'meta' ? PIECE.meta : PIECE.data, content.length, full, content, index)
    return 1
  }

  #flushCopy(): void {
    if (this.#copy === undefined) return
    const { first, count } = this.#copy
    this.#pieces.put(count * 4 + PIECE.copy)
    this.#pieces.putSigned(first - this.#copied)
    this.#copied = first + count
    this.#copy = undefined
  }

  /** @param full the length that need not be said */
  #put(kind: number, length: number, full: number, content: Uint8Array, index: number): void {
    this.#pieces.put((kind !== PIECE.raw && length === full ? 0 : length) * 4 + kind)
    this.#target.push(content)
    this.#targetLength += content.length
    for (const candidate of this.#candidates(index, content)) {
      if (this.#window.has(candidate)) continue
      const stride = this.#old.image.extents.stride(candidate)
      if (this.#windowLength + stride > MAX_WINDOW) continue
      this.#window.add(candidate)
      this.#windowLength += stride
    }
  }

  #candidates(index: number, content: Uint8Array): readonly number[] {
    const { image, tables } = this.#old
    if (index >= this.#tables) return Array.from({ length: image.extents.count - tables }, (_, n) => tables + n)
    if (content.length < 1024 && index === 0) return [0]
    return this.#old.candidates(content, this.#places.get(index) ?? [])
  }

  /** The unit's streams. */
  async finish(): Promise<Streams> {
    const { image } = this.#old
    const indexes = [...this.#window].sort((a, b) => a - b)
    const rows = new VarintWriter()
    let end = 0
    for (let n = 0; n < indexes.length; ) {
      const first = indexes[n] as number
      let count = 1
      while (indexes[n + count] === first + count) count++
      rows.put(first - end)
      rows.put(count)
      end = first + count
      n += count
    }
    const window = Buffer.alloc(indexes.reduce((sum, index) => sum + image.extents.stride(index), 0))
    let at = 0
    for (const index of indexes) {
      window.set(await image.exact(index), at)
      at += image.extents.stride(index)
    }
    const target = Buffer.concat(this.#target)
    this.#target.length = 0
    const { seeks, copies, inserts, diff, extra } = match(window, target)
    return {
      window: rows.finish(),
      chunks: this.#chunks.finish(),
      pieces: this.#pieces.finish(),
      copies: numbers(copies, (to, value) => to.put(value)),
      inserts: numbers(inserts, (to, value) => to.put(value)),
      seeks: numbers(seeks, (to, value) => to.putSigned(value)),
      diff,
      extra,
    }
  }
}

function numbers(values: readonly number[], put: (to: VarintWriter, value: number) => void): Uint8Array {
  const writer = new VarintWriter()
  for (const value of values) put(writer, value)
  return writer.finish()
}
