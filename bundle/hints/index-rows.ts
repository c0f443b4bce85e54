import type { ByteRange } from '../../base/source.ts'
import { ENTRY, indexCount, indexHead } from '../chunks.ts'
import { sha256 } from '../digest.ts'
import type { ImageEntry } from '../types.ts'
import { hintsErrors } from './errors.ts'
import { fewRequests, type HintsParts, type OpenHints, readFew, requested, rowLength, SHORT } from './format.ts'

/** A chunk index from what old ones have of it and the rows of hints that they lack. */

/** Where the parts of an entry stand (docs/format.md). */
const AT = { digest: 0, length: 32, storedLength: 36, encoding: 40, storedDigest: 44 } as const
/** So many bits more than two indexes of this length need to be without a collision, mostly: once in a thousand the whole is fetched. */
const SPARE_BITS = 10

/** Bytes of a short digest, for an index of `count` chunks. Pure. */
export function shortWidth(count: number): number {
  const bytes = Math.ceil((2 * Math.log2(Math.max(1, count)) + SPARE_BITS) / 8)
  return Math.min(SHORT.most, Math.max(SHORT.least, bytes))
}

/** What hints have of an index. @param bytes as signed */
export function hintsOf(bytes: Uint8Array): HintsParts['images']['rootfs'] {
  const index = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const count = indexCount(index.length)
  const width = shortWidth(count)
  const entries = Array.from({ length: count }, (_, i) => entryAt(index, i))
  const packed = entries.some((entry) => entry.readUInt32LE(AT.encoding) !== 0)
  const row = rowLength(width, packed)
  const shorts = Buffer.alloc(count * width)
  const rows = Buffer.alloc(count * row)
  for (const [i, entry] of entries.entries()) {
    const start = i * row
    shorts.set(entry.subarray(AT.storedDigest, AT.storedDigest + width), i * width)
    rows.set(entry.subarray(AT.storedDigest + width), start)
    const lengths = start + 32 - width
    rows.writeUIntLE(entry.readUInt32LE(AT.length), lengths, 3)
    if (!packed) continue
    rows.writeUIntLE(entry.readUInt32LE(AT.storedLength), lengths + 3, 3)
    rows.set(entry.subarray(AT.digest, AT.digest + 32), lengths + 6)
  }
  return { width, packed, shorts, rows }
}

/**
 * The chunk index of an image, as signed.
 * @param olds whole indexes that the device keeps
 * @param told how many bytes are about to be fetched
 * @throws HINTS_DIGEST, and those of the source
 */
export async function indexByHints(
  open: OpenHints,
  image: ImageEntry,
  olds: readonly Uint8Array[],
  told: (bytes: number) => void,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Uint8Array> {
  const { count, width, packed, row, shorts, at } = open.hints.images[image.name]
  const index = Buffer.alloc(image.index.length)
  index.set(indexHead(count, image.length))
  const known = new KnownEntries(olds, width)
  const missing: number[] = []
  for (let i = 0; i < count; i++) {
    const old = known.find(shorts, i * width)
    if (old === undefined) missing.push(i)
    else index.set(old, index.length - (count - i) * ENTRY)
  }
  const ranges = missing.map((i): ByteRange => ({ offset: at + i * row, length: row }))
  told(requested(fewRequests(ranges, open.grain)))
  const rows = await readFew(open, ranges, options)
  for (const [n, i] of missing.entries()) {
    const short = shorts.subarray(i * width, (i + 1) * width)
    unpackRow(rows.subarray(n * row, (n + 1) * row), short, packed, entryAt(index, i))
  }
  if (sha256(index) !== image.index.sha256)
    throw hintsErrors.HINTS_DIGEST(`hints make the chunk index of ${image.name} otherwise than signed`)
  return index
}

function unpackRow(row: Buffer, short: Uint8Array, packed: boolean, entry: Buffer): void {
  const lengths = 32 - short.length
  const length = row.readUIntLE(lengths, 3)
  const storedLength = packed ? row.readUIntLE(lengths + 3, 3) : length
  entry.set(short, AT.storedDigest)
  entry.set(row.subarray(0, lengths), AT.storedDigest + short.length)
  entry.set(packed ? row.subarray(lengths + 6) : entry.subarray(AT.storedDigest), AT.digest)
  entry.writeUInt32LE(length, AT.length)
  entry.writeUInt32LE(storedLength, AT.storedLength)
  entry.writeUInt32LE(storedLength === length ? 0 : 1, AT.encoding)
}

const entryAt = (index: Buffer, i: number): Buffer => {
  const start = index.length - (indexCount(index.length) - i) * ENTRY
  return index.subarray(start, start + ENTRY)
}

/** Entries of old indexes by the first bytes of their stored digests: 4 to 10 bytes of memory for each. */
class KnownEntries {
  readonly #olds: readonly Buffer[]
  readonly #width: number
  readonly #mask: number
  /** 1 and up: the number of an entry, over all indexes; 0: free. Entries stand where their digest says, or behind. */
  readonly #places: Uint32Array
  /** By place: two different entries begin alike. */
  readonly #unclear: Uint8Array
  /** Number of the first entry of each index. */
  readonly #first: readonly number[]

  constructor(olds: readonly Uint8Array[], width: number) {
    this.#olds = olds.map((old) => Buffer.from(old.buffer, old.byteOffset, old.length))
    this.#width = width
    let total = 0
    this.#first = this.#olds.map((old) => {
      const first = total
      total += indexCount(old.length)
      return first
    })
    const size = 2 ** Math.ceil(Math.log2(Math.max(1, total) * 2))
    this.#mask = size - 1
    this.#places = new Uint32Array(size)
    this.#unclear = new Uint8Array(size)
    for (let n = 0; n < total; n++) this.#add(n)
  }

  find(shorts: Uint8Array, at: number): Uint8Array | undefined {
    const place = this.#place(Buffer.from(shorts.buffer, shorts.byteOffset + at, this.#width))
    const number = this.#places[place] ?? 0
    return number === 0 || this.#unclear[place] === 1 ? undefined : this.#entry(number - 1)
  }

  #add(n: number): void {
    const entry = this.#entry(n)
    const place = this.#place(entry.subarray(AT.storedDigest, AT.storedDigest + this.#width))
    const there = this.#places[place] ?? 0
    if (there === 0) this.#places[place] = n + 1
    else if (!this.#entry(there - 1).equals(entry)) this.#unclear[place] = 1
  }

  /** Where entries with this short digest stand, or would. There is always a free place. */
  #place(short: Buffer): number {
    for (let place = short.readUInt32LE(0) & this.#mask; ; place = (place + 1) & this.#mask) {
      const number = this.#places[place] ?? 0
      if (number === 0) return place
      const entry = this.#entry(number - 1)
      if (short.compare(entry, AT.storedDigest, AT.storedDigest + this.#width) === 0) return place
    }
  }

  #entry(n: number): Buffer {
    const which = this.#first.findLastIndex((first) => first <= n)
    const old = this.#olds[which] ?? Buffer.alloc(0)
    return entryAt(old, n - (this.#first[which] ?? 0))
  }
}
