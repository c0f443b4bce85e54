import { createHash, hash, randomBytes, randomInt } from 'node:crypto'
import { expect, test } from 'vitest'
import { isAligned } from '../../base/aligned.ts'
import { MiB } from '../../base/bytes.ts'
import { crewBuffer, giveBack, spanDigests, useHashCrew } from '../../base/hash-crew.ts'
import { splitChunks, unpackChunk } from '../../bundle/stored.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import type { Chunk } from '../../bundle/types.ts'

const sha256 = (bytes: Uint8Array): string => hash('sha256', bytes, 'hex')

async function withCrew(work: (piece: Uint8Array) => Promise<void> | void): Promise<void> {
  const done = useHashCrew(2)
  try {
    const piece = crewBuffer()
    if (piece === undefined) throw new Error('no memory')
    piece.set(randomBytes(MiB))
    await work(piece)
    giveBack(piece)
  } finally {
    done()
  }
}

test('two threads find what one finds, in pieces and spans of every size, however the turns fall', async () => {
  await withCrew((whole) => {
    for (let round = 0; round < 300; round++) {
      const piece = whole.subarray(0, randomInt(64 * 1024, MiB + 1))
      const bounds = [0]
      const size = [64, 4096, 65_536, 300_000][round % 4] ?? 0
      for (let at = 0; at < piece.length && bounds.length <= 1024; ) {
        at += Math.min(piece.length - at, randomInt(1, 2 * size))
        bounds.push(at)
      }
      const digests = spanDigests(piece, Int32Array.from(bounds), bounds.length - 1)
      expect(digests).toBeDefined()
      for (let i = 0; i < bounds.length - 1; i++)
        if (digests?.toString('hex', i * 32, (i + 1) * 32) !== sha256(piece.subarray(bounds[i], bounds[i + 1])))
          throw new Error(`round ${round}, span ${i} of ${bounds.length - 1}`)
    }
  })
})

test('the tree of a piece in shared memory is the tree of its bytes', async () => {
  await withCrew((piece) => {
    for (const length of [MiB, MiB - 1, 65_536, 128 * 4096 + 7]) {
      const shared = createTreeHasher()
      const alone = createTreeHasher()
      for (let i = 0; i < 3; i++) {
        shared.update(piece.subarray(0, length))
        alone.update(Buffer.from(piece.subarray(0, length)))
      }
      expect(shared.finish().root).toBe(alone.finish().root)
    }
  })
})

test('chunks of pieces in shared memory: the right ones pass, a wrong one is refused', async () => {
  await withCrew(async (piece) => {
    const bytes = Buffer.concat([piece, piece.subarray(0, 500_000)])
    const chunks: Chunk[] = []
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(bytes.length - at, randomInt(1000, 200_000))
      const digest = sha256(bytes.subarray(at, at + length)) as Chunk['digest']
      const place = { offset: at, length, storedOffset: at, storedLength: length }
      chunks.push({ ...place, digest, storedDigest: digest, encoding: 'raw' })
      at += length
    }
    async function* stream() {
      yield piece
      yield piece.subarray(0, 500_000)
    }
    let known = 0
    for await (const [chunk, stored, digest] of splitChunks(stream(), chunks)) {
      if (digest !== undefined) known++
      unpackChunk(chunk, stored, digest)
    }
    // All but the one that stands in both pieces.
    expect(known).toBeGreaterThanOrEqual(chunks.length - 1)

    const wrong = chunks.map((chunk, i) => (i === 2 ? { ...chunk, storedDigest: '0'.repeat(64) as never } : chunk))
    await expect(async () => {
      for await (const [chunk, stored, digest] of splitChunks(stream(), wrong)) unpackChunk(chunk, stored, digest)
    }).rejects.toMatchObject({ code: 'BUNDLE_DIGEST' })
  })
})

test('memory ends, comes back, and goes with the last user; other memory is not the crew’s', () => {
  const one = useHashCrew(2)
  const two = useHashCrew(2)
  const taken: Uint8Array[] = []
  for (let piece = crewBuffer(); piece !== undefined; piece = crewBuffer()) taken.push(piece)
  expect(taken).toHaveLength(6)
  expect(taken.every(isAligned)).toBe(true)
  expect(giveBack(taken[0] as Uint8Array)).toBe(true)
  expect(crewBuffer()).toBeDefined()
  expect(giveBack(new Uint8Array(MiB))).toBe(false)
  const bounds = Int32Array.of(0, MiB)
  expect(spanDigests(new Uint8Array(MiB), bounds, 1)).toBeUndefined()
  one()
  one()
  expect(spanDigests(taken[1] as Uint8Array, bounds, 1)?.toString('hex', 0, 32)).toBe(
    createHash('sha256').update(new Uint8Array(MiB)).digest('hex'),
  )
  two()
  expect(crewBuffer()).toBeUndefined()
  expect(spanDigests(taken[1] as Uint8Array, bounds, 1)).toBeUndefined()
  // Of a crew that is gone: nobody may use it again.
  expect(giveBack(taken[1] as Uint8Array)).toBe(true)
})

test('a machine with one processor has no second thread', () => {
  const done = useHashCrew(1)
  expect(crewBuffer()).toBeUndefined()
  done()
})
