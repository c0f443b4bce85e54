import { fromHex, hex, roundUp, type Sha256 } from '../../base/bytes.ts'
import { onlyRanges, type PlannedRequest, planRequests } from '../../base/requests.ts'
import { type ByteRange, type ByteSource, readExactly } from '../../base/source.ts'
import { indexCount } from '../chunks.ts'
import { type AttachmentEntry, IMAGE_NAMES, type ImageEntry, type ImageName, type ReleaseStatement } from '../types.ts'
import { hintsErrors } from './errors.ts'

/**
 * The hints beside a bundle (docs/format.md): chunk indexes and inventory once more, cut so that a device fetches only what it
 * cannot take from its own. Signed by nobody and believed in nothing: what is made with them is compared with the signed digest.
 */

export const HINTS_SUFFIX = '.hints'
const MAGIC = 'BSTHNT01'
const FIXED = 72
const LIBRARY = 24
/** Bytes of a short digest; at most what a number holds exactly. */
export const SHORT = { least: 4, most: 6 } as const
const LENGTH = 3
const DIGEST = 32
/** Of the table of pages. */
const PAGE_ENTRY = 12

/** Whether a table of so many pages is no longer than the inventory as stored. */
export const tableFits = (pages: number, inventory: Pick<AttachmentEntry, 'length'> | undefined): boolean =>
  pages * PAGE_ENTRY <= (inventory?.length ?? 0)

/** How the rows of an image are stored. */
export interface Rows {
  /** Chunks. */
  readonly count: number
  /** Bytes of a short digest: the first ones of a chunk's stored digest. */
  readonly width: number
  /** Some chunk is stored compressed, so a row has both digests and both lengths. */
  readonly packed: boolean
  /** Bytes of a row. */
  readonly row: number
  /** The short digests, one after the other. */
  readonly shorts: Uint8Array
  /** Where the rows begin. */
  readonly at: number
}

/** A page of the unpacked inventory. */
export interface Page {
  /** The first 6 bytes of its SHA-256, in hexadecimal. */
  readonly short: string
  readonly unpacked: number
  /** Where it is stored, one zstd frame. */
  readonly at: number
  readonly stored: number
}

export interface Hints {
  readonly images: Readonly<Record<ImageName, Rows>>
  /** Version of the library whose frames have the inventory's stored bytes. */
  readonly library: string
  readonly pages: readonly Page[]
  /** Bytes up to the end of the tables: what reading this took. */
  readonly length: number
  /** Bytes of the whole file. */
  readonly size: number
}

/** A release as far as hints are about it. */
export interface HintedRelease {
  readonly statement: Pick<ReleaseStatement, 'images' | 'attachments'>
  readonly digest: Sha256
}

/** Hints that can be read. */
export interface OpenHints {
  readonly source: ByteSource
  readonly hints: Hints
  /** Bytes that come at once, whatever is asked for; 1 where a request gets what it asks for. */
  readonly grain: number
}

/** Bytes of a row: what a short digest leaves out, and lengths. */
export const rowLength = (width: number, packed: boolean): number =>
  DIGEST - width + LENGTH + (packed ? LENGTH + DIGEST : 0)

export interface HintsParts {
  readonly release: Sha256
  readonly images: Readonly<
    Record<ImageName, Pick<Rows, 'width' | 'packed' | 'shorts'> & { readonly rows: Uint8Array }>
  >
  readonly library: string
  readonly pages: readonly (Pick<Page, 'short' | 'unpacked'> & { readonly bytes: Uint8Array })[]
}

export function encodeHints({ release, images, library, pages }: HintsParts): Uint8Array {
  const head = Buffer.alloc(FIXED)
  head.write(MAGIC, 0, 'latin1')
  head.set(fromHex(release), 8)
  head.write(library, 40, LIBRARY, 'latin1')
  for (const [i, name] of IMAGE_NAMES.entries()) {
    head.writeUInt8(images[name].width, 64 + i)
    head.writeUInt8(images[name].packed ? 1 : 0, 66 + i)
  }
  head.writeUInt32LE(pages.length, 68)
  const table = Buffer.alloc(pages.length * PAGE_ENTRY)
  for (const [i, { short, unpacked, bytes }] of pages.entries()) {
    table.write(short, i * PAGE_ENTRY, 'hex')
    table.writeUIntLE(unpacked, i * PAGE_ENTRY + 6, LENGTH)
    table.writeUIntLE(bytes.length, i * PAGE_ENTRY + 9, LENGTH)
  }
  return Buffer.concat([
    head,
    ...IMAGE_NAMES.map((name) => images[name].shorts),
    table,
    ...IMAGE_NAMES.map((name) => images[name].rows),
    ...pages.map(({ bytes }) => bytes),
  ])
}

/**
 * Reads the tables of hints: their head, the short digests and the table of pages. How long these are follows from the signed
 * statement and the number of pages, which it bounds.
 * @throws HINTS_INVALID, HINTS_WRONG_RELEASE, and those of the source
 */
export async function readHints(
  source: ByteSource,
  { statement, digest }: HintedRelease,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Hints> {
  if (source.size < FIXED) throw invalid(`they have ${source.size} bytes`)
  const head = Buffer.from(await readExactly(source, 0, FIXED, options))
  if (head.toString('latin1', 0, 8) !== MAGIC) throw invalid(`they do not start with ${MAGIC}`)
  const release = hex(head.subarray(8, 40))
  if (release !== digest)
    throw hintsErrors.HINTS_WRONG_RELEASE(`hints are of release ${release}, wanted are those of ${digest}`)
  const library = head.toString('latin1', 40, 40 + LIBRARY).replace(/\0+$/, '')
  const forms = IMAGE_NAMES.map((name, i) => formOf(statement.images, name, head[64 + i] ?? 0, head[66 + i] ?? 0))
  const count = head.readUInt32LE(68)
  const inventory = statement.attachments.find(({ name }) => name === 'inventory')
  if (!tableFits(count, inventory)) throw invalid(`their inventory has ${count} pages`)

  const shorts = forms.reduce((sum, form) => sum + form.count * form.width, 0)
  const length = FIXED + shorts + count * PAGE_ENTRY
  if (length > source.size) throw invalid(`their tables take ${length} bytes, all of them ${source.size}`)
  const tables = Buffer.from(await readExactly(source, FIXED, length - FIXED, options))
  let [at, rowsAt] = [0, length]
  const images: Partial<Record<ImageName, Rows>> = {}
  for (const { name, ...form } of forms) {
    const end = at + form.count * form.width
    images[name] = { ...form, shorts: tables.subarray(at, end), at: rowsAt }
    at = end
    rowsAt += form.count * form.row
  }
  const pages = readPages(tables.subarray(at), rowsAt, inventory?.unpacked ?? 0)
  const last = pages.at(-1)
  const size = last === undefined ? rowsAt : last.at + last.stored
  if (size !== source.size) throw invalid(`they end at ${size}, the file at ${source.size}`)
  return { images: images as Record<ImageName, Rows>, library, pages, length, size }
}

function formOf(entries: readonly ImageEntry[], name: ImageName, width: number, packed: number) {
  const entry = entries.find((image) => image.name === name)
  if (width < SHORT.least || width > SHORT.most || packed > 1) throw invalid(`those of ${name} have an unknown form`)
  const count = entry === undefined ? 0 : indexCount(entry.index.length)
  return { name, count, width, packed: packed === 1, row: rowLength(width, packed === 1) }
}

function readPages(table: Buffer, start: number, inventory: number): Page[] {
  const pages: Page[] = []
  let [at, unpacked] = [start, 0]
  for (let i = 0; i < table.length; i += PAGE_ENTRY) {
    const page = {
      short: table.toString('hex', i, i + 6),
      unpacked: table.readUIntLE(i + 6, LENGTH),
      at,
      stored: table.readUIntLE(i + 9, LENGTH),
    }
    if (page.unpacked === 0 || page.stored === 0) throw invalid(`page ${pages.length} of their inventory is empty`)
    pages.push(page)
    at += page.stored
    unpacked += page.unpacked
  }
  if (pages.length > 0 && unpacked !== inventory)
    throw invalid(`their pages have ${unpacked} bytes of inventory, signed are ${inventory}`)
  return pages
}

/** Requests that fetch one kind of thing, at most; and what a request is worth of bytes between that nobody wants. */
const MOST_REQUESTS = 6
const WORTH_REQUEST = 2048

/** What is fetched for some ranges of hints: in few requests, the shortest gaps between the ranges along with them. Pure. */
export function fewRequests(ranges: readonly ByteRange[], grain: number): readonly PlannedRequest[] {
  const gaps = ranges.slice(1).map(({ offset }, i) => offset - end(ranges[i]))
  const widest = gaps.sort((a, b) => b - a)[MOST_REQUESTS - 1] ?? 0
  return planRequests(ranges, Math.max(WORTH_REQUEST, grain, widest))
}

/** Bytes of requests; by whole grains, what comes for them at most. Pure. */
export const requested = (requests: readonly PlannedRequest[], grain = 1): number =>
  requests.reduce(
    (sum, { offset, length }) => sum + roundUp(offset + length, grain) - Math.floor(offset / grain) * grain,
    0,
  )

/** The bytes of ranges, one behind the other; the caller bounds them. */
export async function readFew(
  { source, grain }: OpenHints,
  ranges: readonly ByteRange[],
  options: { readonly signal?: AbortSignal },
): Promise<Buffer> {
  const out = Buffer.alloc(ranges.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const request of fewRequests(ranges, grain))
    for await (const piece of onlyRanges(request, source.read(request.offset, request.length, options))) {
      out.set(piece, at)
      at += piece.length
    }
  return out
}

const end = (range: ByteRange | undefined): number => (range === undefined ? 0 : range.offset + range.length)

const invalid = (sentence: string) => hintsErrors.HINTS_INVALID(`hints: ${sentence}`)
