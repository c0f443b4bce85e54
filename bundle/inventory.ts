import * as v from 'valibot'
import { compareUtf8, type Sha256 } from '../base/bytes.ts'
import { contentsErrors } from './contents-errors.ts'
import { count, digest } from './fields.ts'
import { fsverityOf } from './fsverity.ts'
import type { SquashEntry, Squashfs } from './squashfs/image.ts'
import type { InventoryEntry } from './types.ts'

/**
 * The inventory: every path of a root file system with its attributes and the fs-verity digest of its content. As
 * bytes: one JSON object per line, in byte order of the paths, each in one exact encoding.
 */

/** The xattrs of one inode are at most 1 MiB, in base64 a third more; a path and a target at most 4 KiB each. */
const MAX_LINE = 1_500_000
const MAX_ENTRIES = 1 << 24
/** Lines are handed out in pieces of about this many characters. */
const PIECE = 64 * 1024
const CONTROL = /[\u0000-\u001f\u007f]/

/**
 * Reads the whole image: each file's content is hashed, hard links once.
 * @throws INVENTORY_PATH, SQUASHFS_*, and what `signal` was aborted with
 */
export async function* buildInventory(
  image: Squashfs,
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<InventoryEntry> {
  const linked = new Map<number, Sha256>()
  for await (const entry of image.walk()) {
    options.signal?.throwIfAborted()
    const path = `/${entry.path}`
    if (CONTROL.test(path)) throw contentsErrors.INVENTORY_PATH(`the path is ${JSON.stringify(path)}`)
    let content: Sha256 | undefined
    if (entry.type === 'file') {
      content = linked.get(entry.inode) ?? (await fsverityOf(image.read(entry)))
      if (entry.nlink > 1) linked.set(entry.inode, content)
    }
    yield inventoryEntry(path, entry, content)
  }
}

function inventoryEntry(path: string, entry: SquashEntry, content: Sha256 | undefined): InventoryEntry {
  const { type, mode, uid, gid, size, target, rdev } = entry
  return {
    path,
    type,
    mode,
    uid,
    gid,
    ...(content !== undefined && { size, digest: content }),
    ...(target !== undefined && { target }),
    ...(rdev !== undefined && { rdev }),
    ...(entry.xattrs.size > 0 && { xattrs: base64Values(entry.xattrs) }),
  }
}

function base64Values(xattrs: ReadonlyMap<string, Uint8Array>): Record<string, string> {
  return Object.fromEntries([...xattrs].map(([name, value]) => [name, Buffer.from(value).toString('base64')]))
}

/** One line of an inventory, its newline included: the one encoding of this entry. */
export function encodeInventoryEntry(entry: InventoryEntry): string {
  const { path, type, mode, uid, gid, size, digest, target, rdev, xattrs } = entry
  return `${JSON.stringify({ path, type, mode, uid, gid, size, digest, target, rdev, xattrs })}\n`
}

/** The bytes of an inventory, in pieces of some 64 KiB. */
export async function* encodeInventory(
  entries: AsyncIterable<InventoryEntry> | Iterable<InventoryEntry>,
): AsyncGenerator<Uint8Array> {
  let lines = ''
  for await (const entry of entries) {
    lines += encodeInventoryEntry(entry)
    if (lines.length < PIECE) continue
    yield Buffer.from(lines)
    lines = ''
  }
  if (lines !== '') yield Buffer.from(lines)
}

const path = v.pipe(
  v.string(),
  v.maxBytes(4096),
  v.check(
    (text) => text === '/' || /^(?:\/(?!\.{1,2}(?:\/|$))[^/\u0000-\u001f\u007f]+)+$/.test(text),
    'not a plain path',
  ),
)
const name = v.pipe(v.string(), v.regex(/^(?:user|trusted|security)\.[^\0]+$/), v.maxBytes(9 + 255))
const base64 = v.pipe(
  v.string(),
  v.check((text) => Buffer.from(text, 'base64').toString('base64') === text, 'not base64'),
)
const xattrs = v.pipe(
  v.record(name, base64),
  v.check((all) => Object.keys(all).length > 0, 'empty'),
  v.check((all) => Object.keys(all).every((key, i, keys) => i === 0 || compareUtf8(keys[i - 1] ?? '', key) < 0)),
)
const u32 = v.pipe(count, v.maxValue(0xffffffff))
const shared = {
  path,
  mode: v.pipe(count, v.maxValue(0o7777)),
  uid: u32,
  gid: u32,
  xattrs: v.exactOptional(xattrs),
}
const rdev = v.strictTuple([v.pipe(count, v.maxValue(0xfff)), v.pipe(count, v.maxValue(0xfffff))])
const target = v.pipe(v.string(), v.minLength(1), v.maxBytes(4095))
const entrySchema = v.variant('type', [
  v.strictObject({ ...shared, type: v.literal('file'), size: count, digest }),
  v.strictObject({ ...shared, type: v.literal('symlink'), target }),
  v.strictObject({ ...shared, type: v.picklist(['char', 'block']), rdev }),
  v.strictObject({ ...shared, type: v.picklist(['dir', 'fifo', 'socket']) }),
])

/**
 * Reads an inventory: each line must be exactly what `encodeInventoryEntry` writes, paths ascending, "/" first.
 * Memory is bounded by the longest line (1.5 MB).
 * @throws INVENTORY_INVALID, and what the stream throws
 */
export async function* parseInventory(
  stream: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<InventoryEntry> {
  let last: string | undefined
  let entries = 0
  for await (const line of lines(stream)) {
    const entry = parseLine(line, entries)
    if (last === undefined ? entry.path !== '/' : compareUtf8(last, entry.path) >= 0)
      throw contentsErrors.INVENTORY_INVALID(`line ${entries + 1} has ${entry.path} after ${last ?? 'nothing'}`)
    last = entry.path
    if (++entries > MAX_ENTRIES) throw contentsErrors.INVENTORY_INVALID(`more than ${MAX_ENTRIES} lines`)
    yield entry
  }
  if (entries === 0) throw contentsErrors.INVENTORY_INVALID('it is empty')
}

function parseLine(line: string, index: number): InventoryEntry {
  let entry: InventoryEntry
  try {
    entry = v.parse(entrySchema, JSON.parse(line))
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw contentsErrors.INVENTORY_INVALID(`line ${index + 1}: ${why}`, { cause })
  }
  // Equal to its own encoding: no second spelling, no duplicate key, no other order.
  if (encodeInventoryEntry(entry) !== `${line}\n`)
    throw contentsErrors.INVENTORY_INVALID(`line ${index + 1} (${entry.path}) is not in its exact encoding`)
  return entry
}

/** Splits a stream at newlines; every line has one. */
async function* lines(stream: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<string> {
  let rest: Uint8Array = new Uint8Array(0)
  for await (const piece of stream) {
    let bytes = rest.length === 0 ? piece : Buffer.concat([rest, piece])
    for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10)) {
      yield decode(bytes.subarray(0, end))
      bytes = bytes.subarray(end + 1)
    }
    if (bytes.length > MAX_LINE) throw contentsErrors.INVENTORY_INVALID(`a line is longer than ${MAX_LINE} bytes`)
    rest = Uint8Array.from(bytes)
  }
  if (rest.length > 0) throw contentsErrors.INVENTORY_INVALID('its last line has no end')
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decode(line: Uint8Array): string {
  try {
    return utf8.decode(line)
  } catch (cause) {
    throw contentsErrors.INVENTORY_INVALID('a line is not UTF-8', { cause })
  }
}
