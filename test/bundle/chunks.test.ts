import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { cutChunks, decodeIndex, encodeIndex, indexSize, MAX_CHUNK, storedLength } from '../../bundle/chunks.ts'
import type { Chunk, ChunkIndex } from '../../bundle/types.ts'
import { noise } from './tools.ts'

const digest = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((b) => Buffer.from(b).toString('hex') as Sha256)
const someChunk = fc.record({
  digest,
  other: digest,
  length: fc.integer({ min: 2, max: 5000 }),
  raw: fc.boolean(),
  saved: fc.integer({ min: 1, max: 5000 }),
})
/** Any valid index: the last chunk fills the image up to a whole block. */
const someIndex = fc.array(someChunk, { minLength: 1, maxLength: 20 }).map((given): ChunkIndex => {
  const chunks: Chunk[] = []
  let offset = 0
  let storedOffset = 0
  for (const [i, { digest, other, raw, saved, ...rest }] of given.entries()) {
    const tail = i === given.length - 1 ? 4096 - ((offset + rest.length) % 4096) : 0
    const length = rest.length + tail
    const size = raw ? length : Math.max(1, length - saved)
    chunks.push({
      digest,
      offset,
      length,
      encoding: raw ? 'raw' : 'zstd',
      storedOffset,
      storedLength: size,
      storedDigest: raw ? digest : other,
    })
    offset += length
    storedOffset += size
  }
  return { imageLength: offset, chunks }
})

test('an index survives encoding, and the encoding is the only one', () => {
  fc.assert(
    fc.property(someIndex, (index) => {
      const bytes = encodeIndex(index)
      const { imageLength, chunks } = decodeIndex(bytes)
      // One by one: digests are read from the index when they are asked for.
      const plain = chunks.map(({ digest, offset, length, encoding, storedOffset, storedLength, storedDigest }) => {
        return { digest, offset, length, encoding, storedOffset, storedLength, storedDigest }
      })
      expect({ imageLength, chunks: plain }).toEqual(index)
      expect(bytes.length).toBe(indexSize(index.chunks.length))
      expect(storedLength(decodeIndex(bytes))).toBe(index.chunks.reduce((sum, c) => sum + c.storedLength, 0))
      expect(Buffer.from(encodeIndex(decodeIndex(bytes))).equals(bytes)).toBe(true)
    }),
  )
})

test('changed bytes: refused as such, or another valid index that encodes back', () => {
  fc.assert(
    fc.property(someIndex, fc.nat(), fc.integer({ min: 1, max: 255 }), (index, where, change) => {
      const bytes = Buffer.from(encodeIndex(index))
      const at = where % bytes.length
      bytes[at] = (bytes[at] ?? 0) ^ change
      let again: ChunkIndex
      try {
        again = decodeIndex(bytes)
      } catch (error) {
        expect(error).toMatchObject({ code: 'BUNDLE_INDEX_INVALID' })
        return
      }
      expect(Buffer.from(encodeIndex(again)).equals(bytes)).toBe(true)
    }),
    { numRuns: 500 },
  )
})

test('every rule', () => {
  const index: ChunkIndex = {
    imageLength: 4096,
    chunks: [
      {
        digest: 'aa'.repeat(32) as Sha256,
        offset: 0,
        length: 4096,
        encoding: 'zstd',
        storedOffset: 0,
        storedLength: 100,
        storedDigest: 'bb'.repeat(32) as Sha256,
      },
    ],
  }
  const good = Buffer.from(encodeIndex(index))
  const u32 = (at: number, value: number) => (bytes: Buffer) => bytes.writeUInt32LE(value, at)
  const u64 = (value: bigint) => (bytes: Buffer) => bytes.writeBigUInt64LE(value, 16)
  const bad: [string, (bytes: Buffer) => unknown][] = [
    ['another magic', (bytes) => bytes.write('2', 7)],
    ['more chunks than there are', u32(8, 2)],
    ['fewer', u32(8, 0)],
    ['very many', u32(8, 0xffffffff)],
    ['a reserved field', u32(12, 1)],
    ['an image of part of a block', u64(4095n)],
    ['an image of nothing', u64(0n)],
    ['an image beyond safe integers', u64(2n ** 63n)],
    ['an image longer than its chunks', u64(8192n)],
    ['an empty chunk', u32(24 + 32, 0)],
    ['a chunk over 1 MiB', u32(24 + 32, MAX_CHUNK + 1)],
    ['an empty stored chunk', u32(24 + 36, 0)],
    ['a compressed chunk that is not smaller', u32(24 + 36, 4096)],
    ['an unknown encoding', u32(24 + 40, 2)],
    ['a raw chunk of another stored length', u32(24 + 40, 0)],
  ]
  for (const [what, change] of bad) {
    const bytes = Buffer.from(good)
    change(bytes)
    expect(() => decodeIndex(bytes), what).toThrow(expect.objectContaining({ code: 'BUNDLE_INDEX_INVALID' }))
  }
  const otherDigest = Buffer.from(good)
  u32(24 + 36, 4096)(otherDigest)
  u32(24 + 40, 0)(otherDigest)
  expect(() => decodeIndex(otherDigest)).toThrow(/differs as stored/)
  for (const bytes of [good.subarray(0, -1), Buffer.concat([good, Buffer.alloc(1)]), Buffer.alloc(0), noise(100)])
    expect(() => decodeIndex(bytes)).toThrow(expect.objectContaining({ code: 'BUNDLE_INDEX_INVALID' }))
})

test('cuts: ascending, complete, at boundaries, within bounds', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 1 << 20 }), { minLength: 1, maxLength: 60 }), (blocks) => {
      const ends = blocks.map(
        (
          (sum) => (size: number) =>
            (sum += size)
        )(0),
      )
      const length = ends.at(-1) ?? 0
      const cuts = [...cutChunks(length, ends)]
      expect(cuts.at(-1)).toBe(length)
      const known = new Set(ends)
      let previous = 0
      for (const cut of cuts) {
        expect(known.has(cut)).toBe(true)
        expect(cut - previous).toBeGreaterThan(0)
        expect(cut - previous).toBeLessThanOrEqual(1 << 20)
        // Over 256 KiB only when it is one block.
        if (cut - previous > 256 << 10) expect(ends.filter((end) => end > previous && end < cut)).toEqual([])
        previous = cut
      }
      expect([...cutChunks(length, [0, ...ends])]).toEqual(cuts)
      expect([...cutChunks(length, ends.slice(0, -1))]).toEqual(cuts)
    }),
  )
})

test('the first block is a chunk of its own: a superblock holds the time of each build', () => {
  expect([...cutChunks(40_000, [98, 9000, 9100, 40_000])]).toEqual([98, 9000, 40_000])
  expect([...cutChunks(40_000, [0, 98, 9000])]).toEqual([98, 9000, 40_000])
  expect([...cutChunks(98, [98])]).toEqual([98])
})

test('cuts without boundaries, with a gap, and at nothing', () => {
  expect([...cutChunks(300 << 10)]).toEqual([128 << 10, 256 << 10, 300 << 10])
  expect([...cutChunks(128 << 10)]).toEqual([128 << 10])
  expect([...cutChunks(0)]).toEqual([])
  expect([...cutChunks(0, [])]).toEqual([])
  const gap = [...cutChunks(5 << 20, [])]
  expect(Math.max(...gap.map((cut, i) => cut - (gap[i - 1] ?? 0)))).toBeLessThanOrEqual(MAX_CHUNK)
})

test('after a change of one block the cuts fall into step again', () => {
  const sizes = Array.from(noise(4000), (byte, i) => 200 + byte * 37 + (i % 7))
  const ends = (list: number[]) =>
    list.map(
      (
        (sum) => (size: number) =>
          (sum += size)
      )(0),
    )
  const before = ends(sizes)
  const changed = ends(sizes.with(500, (sizes[500] ?? 0) + 1000))
  const cutsBefore = [...cutChunks(before.at(-1) ?? 0, before)]
  const cutsAfter = new Set([...cutChunks(changed.at(-1) ?? 0, changed)].map((cut) => cut - 1000))
  const missing = cutsBefore.filter((cut) => cut > (before[500] ?? 0) && !cutsAfter.has(cut))
  expect(cutsBefore.length).toBeGreaterThan(100)
  expect(missing.length).toBeLessThan(10)
})

test('boundaries that are not positions in order: refused', () => {
  for (const boundaries of [[10, 10], [20, 10], [5000], [-1], [0.5], [Number.NaN]])
    expect(() => [...cutChunks(4096, boundaries)]).toThrow(expect.objectContaining({ code: 'IMAGE_BOUNDARIES' }))
})
