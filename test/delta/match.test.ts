import { describe, expect, it } from 'vitest'
import { type Matched, match } from '../../publisher/delta/match.ts'
import { Similar } from '../../publisher/delta/similar.ts'
import { noise } from '../bundle/tools.ts'
import { randomFrom } from '../device-install/model.ts'
import { program, text } from './kit.ts'

// What describes new content by old: always exact, whatever the two are, and short where they are alike.

const seed = Number(process.env['BISTABLE_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
console.log(`match: BISTABLE_SEED=${seed}`)
const random = randomFrom(seed)
const below = (n: number): number => Math.floor(random() * n)

/** The orders carried out, as docs/format.md has them. */
function applied(window: Uint8Array, { seeks, copies, inserts, diff, extra }: Matched): Buffer {
  const out: number[] = []
  let [at, diffAt, extraAt] = [0, 0, 0]
  for (const [n, seek] of seeks.entries()) {
    at += seek
    for (let left = copies[n] ?? 0; left > 0; left--) {
      expect(at >= 0 && at < window.length).toBe(true)
      out.push(((window[at++] ?? 0) + (diff[diffAt++] ?? 0)) % 256)
    }
    for (let left = inserts[n] ?? 0; left > 0; left--) out.push(extra[extraAt++] ?? 0)
  }
  expect([diffAt, extraAt]).toEqual([diff.length, extra.length])
  return Buffer.from(out)
}

describe('matching', () => {
  it('any content from any other: the orders give exactly it', () => {
    const kinds = [
      () => noise(below(4000), String(random())),
      () => Buffer.alloc(below(9000), below(3)),
      () => text(below(90), below(100)),
      () => program(below(700), 0x400000 + below(99), below(3)),
      () => Buffer.alloc(0),
    ]
    const some = (): Buffer =>
      Buffer.concat(Array.from({ length: below(4) }, () => (kinds[below(kinds.length)] ?? noise)(9, '')))
    for (let round = 0; round < 150; round++) {
      const window = some()
      const target = Buffer.concat([
        some(),
        window.subarray(below(window.length + 1), below(window.length + 1)),
        some(),
      ])
      for (let n = below(12); n > 0 && target.length > 0; n--) target[below(target.length)] = below(256)
      expect(applied(window, match(window, target)).equals(target), `round ${round}`).toBe(true)
    }
  })

  it('a program whose addresses moved: old bytes and differences that are mostly zero, next to nothing new', () => {
    const old = program(20_000, 0x400000, 5)
    const next = Buffer.concat([noise(96, 'front'), program(20_000, 0x400040, 5)])
    const found = match(old, next)
    expect(applied(old, found).equals(next)).toBe(true)
    expect(found.extra.length).toBeLessThan(400)
    expect(found.diff.filter((byte) => byte !== 0).length).toBeLessThan(next.length / 10)
    expect(found.seeks.length).toBeLessThan(40)
  })

  it('content of which nothing is known is all new, and what is the same is one copy', () => {
    const [one, other] = [noise(50_000, 'one'), noise(50_000, 'other')]
    expect(match(one, other).extra.length).toBeGreaterThan(49_000)
    const same = match(one, one)
    expect([same.copies, same.extra.length]).toEqual([[50_000], 0])
    expect(same.diff.every((byte) => byte === 0)).toBe(true)
  })
})

describe('likeness', () => {
  it('finds what a piece was made from by its bytes alone: renamed, moved within it, grown at the front', () => {
    const pieces = Array.from({ length: 40 }, (_, n) => (n % 2 === 0 ? text(700, n) : program(4000, n * 0x10000, n)))
    const similar = new Similar(pieces.reduce((sum, { length }) => sum + length, 0))
    for (const [n, piece] of pieces.entries()) similar.add(piece, n)
    for (const n of [3, 8, 21]) {
      const piece = pieces[n] ?? Buffer.alloc(0)
      const shifted = Buffer.concat([noise(333, 'front'), piece.subarray(piece.length / 4)])
      shifted.write('CHANGED', 5000)
      expect(similar.find(shifted, 4)[0]).toBe(n)
    }
    expect(similar.find(noise(30_000, 'of nobody'), 4)).toEqual([])
  })
})
