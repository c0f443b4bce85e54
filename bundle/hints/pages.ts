import { MiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { sha256 } from '../digest.ts'
import { ATTACHMENT_LEVEL } from '../release.ts'
import type { AttachmentEntry } from '../types.ts'
import { compress, decompressExactly, zstdVersion } from '../zstd.ts'
import { hintsErrors } from './errors.ts'
import { fewRequests, type HintsParts, type OpenHints, type Page, readFew, requested, tableFits } from './format.ts'

/** An inventory from what an old one has of it and the pages of hints that it lacks. */

/** Old and new are held unpacked: larger ones are fetched whole. */
export const MAX_INVENTORY = 16 * MiB
const MAX_LINES = 128
const MAX_PAGE = 64 * 1024
/** One line in so many begins a page. */
const LINES = 16
const LEVEL = 19
const SHORT = 12
const NEWLINE = 0x0a
const COMMA = 0x2c

/**
 * Yields the ends of the pages of an unpacked inventory. A page begins with a line whose path says so (in fact all in front of
 * its first comma), so that behind a change they fall into step at once; and after 128 lines, or 64 KiB.
 */
export function* pageEnds(inventory: Uint8Array): Generator<number> {
  let [start, lines] = [0, 0]
  for (let at = 0; at < inventory.length; ) {
    const newline = inventory.indexOf(NEWLINE, at)
    const end = newline === -1 ? inventory.length : newline + 1
    const line = inventory.subarray(at, end)
    if (at > start && (lines >= MAX_LINES || end - start > MAX_PAGE || begins(line))) {
      yield at
      ;[start, lines] = [at, 0]
    }
    lines++
    at = end
  }
  if (inventory.length > start) yield inventory.length
}

function begins(line: Uint8Array): boolean {
  const comma = line.indexOf(COMMA)
  const name = comma === -1 ? line : line.subarray(0, comma)
  return Number.parseInt(sha256(name).slice(0, 2), 16) % LINES === 0
}

const shortOf = (page: Uint8Array): string => sha256(page).slice(0, SHORT)

/** What hints have of an inventory; nothing when a device could not make the stored bytes of it. */
export function pagesOf(stored: Uint8Array, entry: AttachmentEntry): Pick<HintsParts, 'library' | 'pages'> {
  const none = { library: zstdVersion, pages: [] }
  if (entry.unpacked > MAX_INVENTORY) return none
  const content = decompressExactly(stored, entry.unpacked)
  if (sha256(compress(content, ATTACHMENT_LEVEL)) !== entry.sha256) return none
  const pages: HintsParts['pages'][number][] = []
  let start = 0
  for (const end of pageEnds(content)) {
    const page = content.subarray(start, end)
    pages.push({ short: shortOf(page), unpacked: page.length, bytes: compress(page, LEVEL) })
    start = end
  }
  return tableFits(pages.length, entry) ? { library: zstdVersion, pages } : none
}

/** What a device would take from its own inventory, and what it would fetch. */
export interface InventoryPlan {
  /** Bytes to fetch. */
  readonly bytes: number
  /** By page: where in the old inventory; undefined: fetched. */
  readonly kept: readonly (number | undefined)[]
}

/** Undefined when hints are of no use for it. @param old unpacked, verified */
export function planInventory(
  { hints, grain }: Pick<OpenHints, 'hints' | 'grain'>,
  old: Uint8Array,
  next: AttachmentEntry,
): InventoryPlan | undefined {
  if (hints.pages.length === 0 || hints.library !== zstdVersion || next.unpacked > MAX_INVENTORY) return undefined
  const known = new Map<string, number>()
  let start = 0
  for (const end of pageEnds(old)) {
    known.set(`${shortOf(old.subarray(start, end))} ${end - start}`, start)
    start = end
  }
  const kept = hints.pages.map(({ short, unpacked }) => known.get(`${short} ${unpacked}`))
  const requests = fewRequests(rangesOf(hints.pages, kept), grain)
  return requested(requests, grain) < next.length ? { bytes: requested(requests), kept } : undefined
}

const rangesOf = (pages: readonly Page[], kept: InventoryPlan['kept']) =>
  pages.filter((_, i) => kept[i] === undefined).map(({ at, stored }) => ({ offset: at, length: stored }))

/**
 * The inventory as stored and signed.
 * @throws HINTS_INVALID, HINTS_DIGEST, and those of the source
 */
export async function inventoryByHints(
  open: OpenHints,
  old: Uint8Array,
  next: AttachmentEntry,
  { kept }: InventoryPlan,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Uint8Array> {
  const fetched = await readFew(open, rangesOf(open.hints.pages, kept), options)
  // The lengths of the pages add up to this: checked when they were read.
  const content = Buffer.alloc(next.unpacked)
  let [at, from] = [0, 0]
  for (const [i, { unpacked, stored }] of open.hints.pages.entries()) {
    const start = kept[i]
    if (start !== undefined) content.set(old.subarray(start, start + unpacked), at)
    else {
      content.set(unpackPage(fetched.subarray(from, from + stored), unpacked), at)
      from += stored
    }
    at += unpacked
  }
  const made = compress(content, ATTACHMENT_LEVEL)
  if (made.length !== next.length || sha256(made) !== next.sha256)
    throw hintsErrors.HINTS_DIGEST('hints make the inventory otherwise than signed')
  return made
}

function unpackPage(stored: Uint8Array, length: number): Uint8Array {
  try {
    return decompressExactly(stored, length)
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw hintsErrors.HINTS_INVALID(`hints: a page of their inventory: ${cause.message}`)
  }
}
