import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import type { ByteRange, ByteSource } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { fewRequests, readHints, requested } from '../../bundle/hints/format.ts'
import { indexByHints, shortWidth } from '../../bundle/hints/index-rows.ts'
import { inventoryByHints, pageEnds, pagesOf, planInventory } from '../../bundle/hints/pages.ts'
import type { AttachmentEntry, ImageEntry, ImageName } from '../../bundle/types.ts'
import { zstdVersion } from '../../bundle/zstd.ts'
import { memorySource } from '../bundle/fixture.ts'
import { randomFrom } from '../device-install/model.ts'
import {
  changedEntries,
  type Entry,
  encodeEntries,
  type Hinted,
  hinted,
  randomEntry,
  storedInventory,
} from './indexes.ts'

// Hints beside a bundle: chunk index and inventory come out exact, few bytes and few requests are fetched, and no table is believed.

const seed = Number(process.env['BISTABLE_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
console.log(`hints: BISTABLE_SEED=${seed}`)
const random = randomFrom(seed)
const below = (n: number): number => Math.floor(random() * n)
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.from(a).equals(b)
const raw = (): Entry => randomEntry(random, 1)
const mixed = (): Entry => randomEntry(random)
const many = (n: number, make = raw): Entry[] => Array.from({ length: n }, make)

/** A source that notes what is read of it. */
function noted(bytes: Uint8Array): { source: ByteSource; reads: ByteRange[] } {
  const inner = memorySource(bytes)
  const reads: ByteRange[] = []
  const read: ByteSource['read'] = (offset, length, options) => {
    reads.push({ offset, length })
    return inner.read(offset, length, options)
  }
  return { reads, source: { name: inner.name, size: inner.size, read, close: () => inner.close() } }
}

/** The index of an image by hints: what it took, or the code of the refusal. */
async function take(of: Hinted, name: ImageName, olds: readonly Uint8Array[], bytes = of.bytes) {
  const { source, reads } = noted(bytes)
  let told = 0
  const hints = await readHints(source, of.release)
  const tables = reads.splice(0)
  const image = of.release.statement.images.find((one) => one.name === name) as ImageEntry
  const index = await indexByHints({ source, hints, grain: 1 }, image, olds, (more) => {
    told += more
  })
  const fetched = reads.reduce((sum, { length }) => sum + length, 0)
  expect(told).toBe(fetched)
  expect(tables.reduce((sum, { length }) => sum + length, 0)).toBe(hints.length)
  return { index, fetched, requests: reads.length, hints }
}

async function codeOf(action: () => Promise<unknown>): Promise<string> {
  try {
    await action()
  } catch (error) {
    return isBistableError(error) ? error.code : String(error)
  }
  return 'none'
}

describe('an index by hints', () => {
  it('whatever chunks came, went or moved: the same bytes, in few requests', async () => {
    for (let round = 0; round < 25; round++) {
      const fresh = round % 2 === 0 ? raw : mixed
      const old = many(1 + below(1500), fresh)
      const next = changedEntries(random, old, below(30), fresh)
      const of = hinted(encodeEntries(many(3, mixed)), encodeEntries(next))
      // What the device keeps may be of several releases, in any order.
      const olds = random() < 0.3 ? [encodeEntries(many(5, mixed)), encodeEntries(old)] : [encodeEntries(old)]
      const { index, requests } = await take(of, 'rootfs', olds)
      expect(same(index, of.index.rootfs)).toBe(true)
      expect(requests).toBeLessThanOrEqual(6)
      // With nothing at all it is still much shorter than the index.
      const all = await take(of, 'rootfs', [])
      expect(same(all.index, of.index.rootfs)).toBe(true)
      expect(all.requests).toBe(1)
      if (fresh === raw) expect(all.fetched + 5 * next.length).toBeLessThan(of.index.rootfs.length * 0.49)
    }
  })

  it('of 3,000 chunks of which two are new: some 15 KB of 228', async () => {
    const old = many(3000)
    const next = [...old]
    next.splice(10, 1, raw())
    next.splice(2990, 1, raw())
    const of = hinted(encodeEntries(many(2, mixed)), encodeEntries(next))
    const { index, fetched, requests, hints } = await take(of, 'rootfs', [encodeEntries(old)])
    expect(same(index, of.index.rootfs)).toBe(true)
    expect([requests, fetched]).toEqual([2, 2 * 30])
    expect(hints.length).toBeLessThan(15_300)
  })

  it('two old chunks that begin alike are no answer, and neither makes another index', async () => {
    const [one, two] = [raw(), raw()]
    const alike: Entry = { ...two, digest: `${one.digest.slice(0, 8)}${two.digest.slice(8)}` as Sha256 }
    const twin = { ...alike, storedDigest: alike.digest }
    const old = encodeEntries([one, twin, ...many(20)])
    const of = hinted(encodeEntries([mixed()]), encodeEntries([one, one, twin]))
    const { index, fetched } = await take(of, 'rootfs', [old])
    expect(same(index, of.index.rootfs)).toBe(true)
    expect(fetched).toBe(3 * 31)
    // Only the other one is there: it is taken for the wanted one, and the digest tells.
    expect(await codeOf(() => take(of, 'rootfs', [encodeEntries([twin])]))).toBe('HINTS_DIGEST')
  })

  it('short digests grow with the index', () => {
    expect([1, 100, 2048, 2049, 32_768, 32_769, 883_011].map(shortWidth)).toEqual([4, 4, 4, 5, 5, 6, 6])
  })
})

describe('hints that lie', () => {
  it('flipped anywhere, cut, grown, of another release: a typed refusal or the signed index, never another', async () => {
    const old = many(60, mixed)
    const of = hinted(
      encodeEntries(many(4, mixed)),
      encodeEntries(changedEntries(random, old, 6, mixed)),
      text(40, [1]),
    )
    const olds = [encodeEntries(old)]
    const hostile: Uint8Array[] = [
      new Uint8Array(0),
      of.bytes.subarray(0, 71),
      of.bytes.subarray(0, 100),
      of.bytes.subarray(0, -1),
      Buffer.concat([of.bytes, Buffer.alloc(1)]),
    ]
    for (let n = 0; n < 600; n++)
      hostile.push(of.bytes.map((byte, i) => (i === (n * 7) % of.bytes.length ? byte ^ (1 + below(255)) : byte)))
    const met = new Map<string, number>()
    for (const bytes of hostile) {
      const code = await codeOf(async () => {
        const { index } = await take(of, 'rootfs', olds, bytes)
        expect(same(index, of.index.rootfs)).toBe(true)
      })
      met.set(code, (met.get(code) ?? 0) + 1)
    }
    // Of the other image, of the inventory, and rows that nobody needs: these change nothing here.
    expect([...met.keys()].sort()).toEqual(['HINTS_DIGEST', 'HINTS_INVALID', 'HINTS_WRONG_RELEASE', 'none'])
  })

  it('a head that promises too much is refused before anything is read for it', async () => {
    const of = hinted(encodeEntries([mixed()]), encodeEntries(many(9)))
    const changed = (change: (bytes: Buffer) => void): Uint8Array => {
      const copy = Buffer.from(of.bytes)
      change(copy)
      return copy
    }
    const cases: readonly [string, Uint8Array][] = [
      ['HINTS_INVALID', changed((bytes) => bytes.writeUInt32LE(0xffffffff, 68))],
      ['HINTS_INVALID', changed((bytes) => bytes.writeUInt8(3, 64))],
      ['HINTS_INVALID', changed((bytes) => bytes.writeUInt8(7, 65))],
      ['HINTS_INVALID', changed((bytes) => bytes.writeUInt8(2, 67))],
      ['HINTS_INVALID', changed((bytes) => bytes.write('BSTHNT02', 0, 'latin1'))],
      ['HINTS_WRONG_RELEASE', changed((bytes) => bytes.writeUInt8((bytes.at(8) ?? 0) ^ 1, 8))],
    ]
    for (const [code, bytes] of cases) {
      const { source, reads } = noted(bytes)
      expect(await codeOf(() => readHints(source, of.release))).toBe(code)
      expect(reads).toEqual([{ offset: 0, length: 72 }])
    }
    const empty = changed((bytes) => bytes.writeUIntLE(0, 72 + 10 * 4 + 9, 3))
    expect(await codeOf(() => readHints(memorySource(empty), of.release))).toBe('HINTS_INVALID')
  })
})

/** An inventory of `count` files, some of them other than usual. */
function text(count: number, other: readonly number[] = [], more = ''): string {
  const line = (i: number): string => {
    const digest = sha256(Buffer.from(`${i} ${other.includes(i)}`))
    const path = `/usr/share/${String(i).padStart(6, '0')}`
    return `${JSON.stringify({ path, type: 'file', mode: 420, uid: 0, gid: 0, size: i, digest })}\n`
  }
  return `${Array.from({ length: count }, (_, i) => line(i)).join('')}${more}`
}

describe('an inventory by hints', () => {
  const images = [encodeEntries([mixed()]), encodeEntries(many(9))] as const
  const old = text(3000)
  async function plan(next: string, spoil: (bytes: Buffer) => void = () => undefined, library?: string) {
    const of = hinted(...images, next)
    const bytes = Buffer.from(of.bytes)
    spoil(bytes)
    const { source, reads } = noted(bytes)
    const found = await readHints(source, of.release)
    const hints = library === undefined ? found : { ...found, library }
    reads.splice(0)
    const entry = of.release.statement.attachments[0] as AttachmentEntry
    return { of, entry, source, hints, reads, plan: planInventory({ hints, grain: 1 }, Buffer.from(old), entry) }
  }

  it('is made again as it is stored and signed, by the pages that changed', async () => {
    const { of, entry, source, hints, reads, plan: planned } = await plan(text(3000, [5, 6, 1700], text(3)))
    if (planned === undefined) return expect.unreachable('no plan')
    const stored = await inventoryByHints({ source, hints, grain: 1 }, Buffer.from(old), entry, planned)
    expect(same(stored, of.stored)).toBe(true)
    expect(reads.reduce((sum, { length }) => sum + length, 0)).toBe(planned.bytes)
    expect(reads.length).toBeLessThanOrEqual(3)
    expect(planned.bytes + hints.length).toBeLessThan(of.stored.length / 8)
    // Where bytes come by pieces, whole pieces count; and where a piece is everything, there is nothing to save.
    expect(planInventory({ hints, grain: 8192 }, Buffer.from(old), entry)).toBeDefined()
    expect(planInventory({ hints, grain: 2 ** 20 }, Buffer.from(old), entry)).toBeUndefined()
  })

  it('is not planned where hints are of no use: another library, no pages, everything new', async () => {
    expect((await plan(text(3000, [5]), undefined, '0.0.1')).plan).toBeUndefined()
    const strange = storedInventory(text(100), 3)
    expect(pagesOf(strange.stored, strange.entry).pages).toEqual([])
    const huge = { ...strange.entry, unpacked: 17 * 1024 * 1024 }
    expect(pagesOf(strange.stored, huge).pages).toEqual([])
    const all = Array.from({ length: 3000 }, (_, i) => i)
    expect((await plan(text(3000, all))).plan).toBeUndefined()
    expect((await plan(text(3000, [5]))).hints.library).toBe(zstdVersion)
  })

  it('damaged or another one: refused', async () => {
    const flip = (at: (bytes: Buffer) => number) => (bytes: Buffer) => {
      bytes.writeUInt8((bytes.at(at(bytes)) ?? 0) ^ 0x55, at(bytes))
    }
    for (const where of [-1, -9, -40]) {
      const {
        entry,
        source,
        hints,
        plan: planned,
      } = await plan(
        text(3000, [2999]),
        flip((bytes) => bytes.length + where),
      )
      const code = await codeOf(async () => {
        if (planned !== undefined) await inventoryByHints({ source, hints, grain: 1 }, Buffer.from(old), entry, planned)
      })
      expect(code).toMatch(/^HINTS_(INVALID|DIGEST)$/)
    }
    const { entry, source, hints, plan: planned } = await plan(text(3000, [5]))
    if (planned === undefined) return expect.unreachable('no plan')
    const other = Buffer.from(text(3000, [2000]))
    expect(await codeOf(() => inventoryByHints({ source, hints, grain: 1 }, other, entry, planned))).toBe(
      'HINTS_DIGEST',
    )
  })

  it('its pages cover it, whatever it holds, and fall into step behind a change', () => {
    for (const bytes of ['', '\n', 'x', ',,,\n\n', `${'y'.repeat(100_000)}\nz`, '\n'.repeat(1000)].map((one) =>
      Buffer.from(one),
    )) {
      const ends = [...pageEnds(bytes)]
      expect(ends.at(-1) ?? 0).toBe(bytes.length)
      expect(ends).toEqual([...new Set(ends)].sort((a, b) => a - b))
    }
    const [before, after] = [old, `${text(10).replaceAll('share', 'other')}${old}`].map((one) => Buffer.from(one))
    if (before === undefined || after === undefined) return
    const shift = after.length - before.length
    const moved = new Set([...pageEnds(after)].map((end) => end - shift))
    const ends = [...pageEnds(before)]
    expect(ends.filter((end) => !moved.has(end)).length).toBeLessThanOrEqual(8)
    expect(ends.length).toBeGreaterThan(100)
  })
})

it('requests: never more than six, and nothing between that is worth one', () => {
  for (let round = 0; round < 50; round++) {
    const ranges: ByteRange[] = []
    let at = 0
    for (let n = below(40); n >= 0; n--) {
      at += 1 + below(round % 2 === 0 ? 5000 : 50_000)
      ranges.push({ offset: at, length: 1 + below(300) })
      at += ranges.at(-1)?.length ?? 0
    }
    const requests = fewRequests(ranges, 1)
    expect(requests.length).toBeLessThanOrEqual(6)
    expect(requests.flatMap((request) => request.ranges)).toEqual(ranges)
    expect(requested(requests)).toBe(requests.reduce((sum, { length }) => sum + length, 0))
    for (const [i, { offset }] of requests.slice(1).entries()) {
      const before = requests[i]
      expect(offset - (before?.offset ?? 0) - (before?.length ?? 0)).toBeGreaterThan(2048)
    }
  }
})
