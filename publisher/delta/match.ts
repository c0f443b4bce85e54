/**
 * Finds how new content follows from old content when bytes in between changed: stretches of the old that are alike
 * (not equal) with the differences to add, and new bytes between. The idea is Colin Percival's (bsdiff, 2003): an exact
 * match is a seed, and stretches grow from it as long as at least half of the bytes agree, so that code whose addresses
 * moved becomes a sum with few bytes other than 0. Seeds come from a table of 8-byte hashes instead of a suffix array.
 */

/** Orders for a unit: for each, move by `seeks`, take `copies` old bytes with differences, then `inserts` new bytes. */
export interface Matched {
  readonly seeks: readonly number[]
  readonly copies: readonly number[]
  readonly inserts: readonly number[]
  readonly diff: Uint8Array
  readonly extra: Uint8Array
}

const SEED = 8
/** Places with one hash that are looked at. */
const CHAIN = 48
/** Exact matches are measured up to here; a longer one is found again where this ends. */
const MEASURED = 8192
/** A new place must match this many bytes more than going on as before. */
const BETTER = 8

/** All places of every 8 bytes of a window, newest first. */
class Seeds {
  readonly #bytes: Uint8Array
  readonly #heads: Int32Array
  readonly #before: Int32Array
  readonly #shift: number
  /** Result of `longest`. */
  position = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
    const bits = Math.max(10, Math.min(24, Math.ceil(Math.log2(bytes.length + 1))))
    this.#shift = 32 - bits
    this.#heads = new Int32Array(1 << bits).fill(-1)
    this.#before = new Int32Array(bytes.length)
    for (let at = 0; at + SEED <= bytes.length; at++) {
      const hash = hashAt(bytes, at) >>> this.#shift
      this.#before[at] = this.#heads[hash] as number
      this.#heads[hash] = at
    }
  }

  /** Bytes of the longest match of `target` from `from` on; its place is in `position`. `first` is tried first. */
  longest(target: Uint8Array, from: number, first: number): number {
    let best = this.#measure(target, from, first)
    this.position = first
    if (from + SEED > target.length) return best
    const hash = hashAt(target, from) >>> this.#shift
    let at = this.#heads[hash] as number
    for (let n = 0; n < CHAIN && at >= 0 && best < MEASURED; n++) {
      if (best === 0 || this.#bytes[at + best] === target[from + best]) {
        const length = this.#measure(target, from, at)
        if (length > best) {
          best = length
          this.position = at
        }
      }
      at = this.#before[at] as number
    }
    return best
  }

  #measure(target: Uint8Array, from: number, at: number): number {
    if (at < 0) return 0
    const bytes = this.#bytes
    const most = Math.min(MEASURED, target.length - from, bytes.length - at)
    let n = 0
    while (n < most && bytes[at + n] === target[from + n]) n++
    return n
  }
}

function hashAt(bytes: Uint8Array, at: number): number {
  const low =
    (bytes[at] as number) |
    ((bytes[at + 1] as number) << 8) |
    ((bytes[at + 2] as number) << 16) |
    ((bytes[at + 3] as number) << 24)
  const high =
    (bytes[at + 4] as number) |
    ((bytes[at + 5] as number) << 8) |
    ((bytes[at + 6] as number) << 16) |
    ((bytes[at + 7] as number) << 24)
  const mixed = Math.imul(low, 0x9e3779b1) ^ Math.imul(high, 0x85ebca6b)
  return Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d)
}

/** How far two stretches from `at` and `to` on, forwards or backwards, are more alike than not; at most `most` bytes. */
function grow(old: Uint8Array, at: number, target: Uint8Array, to: number, most: number, step: 1 | -1): number {
  let score = 0
  let bestScore = 0
  let length = 0
  for (let i = 0; i < most; i++) {
    score += old[at + i * step] === target[to + i * step] ? 1 : -1
    if (score > bestScore) {
      bestScore = score
      length = i + 1
    }
  }
  return length
}

/** Describes `target` by `old`; both at most some tens of MiB. Deterministic. */
export function match(old: Uint8Array, target: Uint8Array): Matched {
  const seeds = new Seeds(old)
  const seeks: number[] = []
  const copies: number[] = []
  const inserts: number[] = []
  const diff = Buffer.alloc(target.length)
  const extra = Buffer.alloc(target.length)
  let diffLength = 0
  let extraLength = 0
  /** Where the old bytes of the last order ended. */
  let oldEnd = 0

  /** What was described so far ends at `done`; from there on old bytes from `doneOld` on are alike. */
  let done = 0
  let doneOld = 0
  let offset = 0
  let scan = 0
  let length = 0
  let place = 0
  const same = (at: number): boolean => at + offset >= 0 && old[at + offset] === target[at]

  while (scan < target.length) {
    /** Of the bytes that the seed covers, how many going on as before covers too. */
    let covered = 0
    scan += length
    for (let counted = scan; scan < target.length; scan++) {
      length = seeds.longest(target, scan, scan + offset)
      place = seeds.position
      for (; counted < scan + length; counted++) if (same(counted)) covered++
      if ((length === covered && length !== 0) || length > covered + BETTER) break
      if (counted > scan) {
        if (same(scan)) covered--
      } else counted = scan + 1
    }
    if (length === covered && scan < target.length) continue

    let copied = grow(old, doneOld, target, done, Math.min(scan - done, old.length - doneOld), 1)
    let back = scan < target.length ? grow(old, place - 1, target, scan - 1, Math.min(scan - done, place), -1) : 0
    const overlap = done + copied - (scan - back)
    if (overlap > 0) {
      // The two stretches meet: cut where both together agree most.
      let score = 0
      let bestScore = 0
      let cut = 0
      for (let i = 0; i < overlap; i++) {
        const at = done + copied - overlap + i
        if (target[at] === old[doneOld + copied - overlap + i]) score++
        if (target[at] === old[place - back + i]) score--
        if (score > bestScore) {
          bestScore = score
          cut = i + 1
        }
      }
      copied += cut - overlap
      back -= cut
    }
    const fresh = scan - back - (done + copied)
    if (copied + fresh > 0) {
      seeks.push(doneOld - oldEnd)
      copies.push(copied)
      inserts.push(fresh)
      for (let i = 0; i < copied; i++) diff[diffLength++] = (target[done + i] as number) - (old[doneOld + i] as number)
      extra.set(target.subarray(done + copied, done + copied + fresh), extraLength)
      extraLength += fresh
      oldEnd = doneOld + copied
    }
    done = scan - back
    doneOld = place - back
    offset = place - scan
  }
  return { seeks, copies, inserts, diff: diff.subarray(0, diffLength), extra: extra.subarray(0, extraLength) }
}
