import { roundUp } from '../../base/bytes.ts'
import { ociErrors } from '../oci/errors.ts'
import type { Budget } from '../oci/limits.ts'
import type { ByteFeed } from './feed.ts'
import { BLOCK, type Header, isZero, parseHeader } from './header.ts'
import { decodeName, show } from './names.ts'
import { checkGlobalPax, type PaxRecords, parsePax } from './pax.ts'

/**
 * A strict streaming tar reader: what GNU tar, libarchive, Go's archive/tar and Python's tarfile write today, and
 * nothing that any two of them would read differently.
 */

export type TarType = 'file' | 'dir' | 'symlink' | 'hardlink' | 'char' | 'block' | 'fifo'

export interface TarEntry {
  /** As written, decoded; not yet checked as a path. */
  readonly name: string
  readonly type: TarType
  /** Content bytes; 0 unless a file. */
  readonly size: number
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970, 0 .. 2^32 - 1. */
  readonly mtime: number
  /** Target of a symbolic or hard link, else "". */
  readonly link: string
  readonly rdev: readonly [number, number]
  readonly xattrs: ReadonlyMap<string, Uint8Array>
  /** Names of xattrs given in other forms; what is not among `xattrs` too is lost. */
  readonly others: ReadonlySet<string>
  readonly acl: boolean
}

const TYPES: Readonly<Record<string, TarType>> = {
  '0': 'file',
  '\0': 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'char',
  '4': 'block',
  '5': 'dir',
  '6': 'fifo',
}
const MAX_ID = 2 ** 32 - 2
const MAX_TIME = 2 ** 32 - 1
const OCTAL_SIZE = 8 ** 11
const NO_XATTRS: ReadonlyMap<string, Uint8Array> = new Map()
const NO_OTHERS: ReadonlySet<string> = new Set()

interface Pending {
  pax?: PaxRecords
  longName?: string
  longLink?: string
}

export class TarReader {
  readonly #feed: ByteFeed
  readonly #budget: Budget
  readonly #endMark: 'required' | 'optional'
  #left = 0
  #padding = 0

  /**
   * `endMark`: `optional` takes a tar that stops right behind an entry's content, as `umoci insert` writes them; only for bytes
   * whose digest is checked, since nothing else shows then that some are missing.
   */
  constructor(feed: ByteFeed, budget: Budget, endMark: 'required' | 'optional' = 'required') {
    this.#feed = feed
    this.#budget = budget
    this.#endMark = endMark
  }

  /** Position of the present entry's content in the tar. */
  get position(): number {
    return this.#feed.position
  }

  /** The next entry, or undefined behind the end mark. Content of the last one that was not read is skipped. */
  async next(): Promise<TarEntry | undefined> {
    await this.#feed.skip(this.#left)
    if (this.#endMark === 'optional') await this.#feed.skipAtMost(this.#padding)
    else await this.#feed.skip(this.#padding)
    this.#left = 0
    this.#padding = 0
    const pending: Pending = {}
    for (;;) {
      const block = await this.#feed.take(BLOCK)
      const whole = this.#endMark === 'optional' && this.#feed.position > 0 && Object.keys(pending).length === 0
      if (block === undefined && whole) return undefined
      if (block === undefined) throw ociErrors.LAYER_TRUNCATED(`the tar has no end mark at byte ${this.#feed.position}`)
      if (isZero(block)) {
        if (Object.keys(pending).length > 0) throw ociErrors.LAYER_HEADER('the tar ends behind an extended header')
        await this.#end()
        return undefined
      }
      const header = parseHeader(block)
      if (await this.#extension(header, pending)) continue
      this.#budget.entry()
      const entry = combine(header, pending)
      this.#left = entry.size
      this.#padding = roundUp(entry.size, BLOCK) - entry.size
      return entry
    }
  }

  /** Content of the present entry, `length` bytes of it at once. Valid until the next call. */
  async whole(length: number): Promise<Uint8Array> {
    const bytes = length === 0 ? new Uint8Array(0) : await this.#feed.take(length)
    if (bytes === undefined)
      throw ociErrors.LAYER_TRUNCATED(`the tar ends at byte ${this.#feed.position}, inside a file`)
    this.#left -= length
    return bytes
  }

  /** The next piece of the present entry's content, or undefined at its end. Valid until the next call. */
  async piece(): Promise<Uint8Array | undefined> {
    if (this.#left === 0) return undefined
    const bytes = await this.#feed.some(this.#left)
    this.#left -= bytes.length
    return bytes
  }

  /** Takes headers that only say something about the next entry. */
  async #extension(header: Header, pending: Pending): Promise<boolean> {
    switch (header.type) {
      case 'x':
        if (pending.pax !== undefined) throw ociErrors.LAYER_HEADER('two PAX headers stand before one entry')
        pending.pax = parsePax(await this.#body(header.size))
        this.#budget.xattrs(pending.pax.xattrs.size + pending.pax.others.size)
        return true
      case 'g':
        checkGlobalPax(await this.#body(header.size))
        return true
      case 'L':
        if (pending.longName !== undefined) throw ociErrors.LAYER_HEADER('two long names stand before one entry')
        pending.longName = longText(await this.#body(header.size))
        return true
      case 'K':
        if (pending.longLink !== undefined) throw ociErrors.LAYER_HEADER('two long link names stand before one entry')
        pending.longLink = longText(await this.#body(header.size))
        return true
      default:
        return false
    }
  }

  async #body(size: number): Promise<Uint8Array> {
    this.#budget.entry()
    this.#budget.extended(size)
    const padded = await this.#feed.take(roundUp(size, BLOCK))
    if (padded === undefined && size > 0)
      throw ociErrors.LAYER_TRUNCATED(`the tar ends at byte ${this.#feed.position}, in an extended header`)
    return (padded ?? new Uint8Array(0)).subarray(0, size)
  }

  /** One zero block was read: a second one must follow, then zeros only. */
  async #end(): Promise<void> {
    const second = await this.#feed.take(BLOCK)
    if (second === undefined) throw ociErrors.LAYER_TRUNCATED('the tar has one zero block at its end, two are wanted')
    for (let piece: Uint8Array | undefined = second; piece !== undefined; piece = await this.#feed.rest())
      if (!isZero(piece))
        throw ociErrors.LAYER_TRAILING(`bytes follow the end of the tar, before byte ${this.#feed.position}`)
  }
}

function combine(header: Header, pending: Pending): TarEntry {
  const pax = pending.pax
  if (pending.longName !== undefined && pax?.path !== undefined)
    throw ociErrors.LAYER_HEADER(`an entry is named twice: ${show(pending.longName)} and ${show(pax.path)}`)
  if (pending.longLink !== undefined && pax?.linkpath !== undefined)
    throw ociErrors.LAYER_HEADER(`an entry has two link targets: ${show(pending.longLink)} and ${show(pax.linkpath)}`)
  const name = pax?.path ?? pending.longName ?? decodeName(header.name)
  const type = TYPES[header.type]
  if (type === undefined)
    throw ociErrors.LAYER_TYPE(`the entry ${show(name)} is of the kind ${show(header.type)}, which images do not hold`)
  const size = agreedSize(name, header.size, pax?.size)
  if (type !== 'file' && size !== 0)
    throw ociErrors.LAYER_HEADER(`the ${type} ${show(name)} announces ${size} bytes of content`)
  const isLink = type === 'symlink' || type === 'hardlink'
  const isDevice = type === 'char' || type === 'block'
  return {
    name,
    type,
    size,
    mode: header.mode,
    uid: id(name, pax?.uid ?? header.uid),
    gid: id(name, pax?.gid ?? header.gid),
    mtime: Math.min(pax?.mtime ?? header.mtime, MAX_TIME),
    link: isLink ? (pax?.linkpath ?? pending.longLink ?? decodeName(header.link)) : '',
    rdev: isDevice ? device(name, header.rdev) : [0, 0],
    xattrs: pax === undefined || pax.xattrs.size === 0 ? NO_XATTRS : pax.xattrs,
    others: pax === undefined || pax.others.size === 0 ? NO_OTHERS : pax.others,
    acl: pax?.acl ?? false,
  }
}

/**
 * A size given in two places must be one size. Where it does not fit the header's eleven octal digits, writers put 0
 * (GNU, Go, Python) or all sevens (libarchive) there.
 */
function agreedSize(name: string, header: number, pax: number | undefined): number {
  if (pax === undefined || pax === header) return header
  if (pax >= OCTAL_SIZE && (header === 0 || header === OCTAL_SIZE - 1)) return pax
  throw ociErrors.LAYER_HEADER(`${show(name)} has the size ${header} in its header and ${pax} in its PAX header`)
}

function id(name: string, value: number): number {
  if (value > MAX_ID)
    throw ociErrors.LAYER_HEADER(`${show(name)} has the owner ${value}, at most ${MAX_ID} is possible`)
  return value
}

/** Linux has 12 bits of major and 20 of minor number. */
function device(name: string, rdev: readonly [number, number]): readonly [number, number] {
  if (rdev[0] < 2 ** 12 && rdev[1] < 2 ** 20) return rdev
  throw ociErrors.LAYER_HEADER(`${show(name)} has the impossible device number ${rdev.join(':')}`)
}

/** GNU closes a long name with one NUL. */
function longText(body: Uint8Array): string {
  const text = body[body.length - 1] === 0 ? body.subarray(0, -1) : body
  if (text.includes(0)) throw ociErrors.LAYER_HEADER('a long name holds a NUL')
  return decodeName(text)
}
