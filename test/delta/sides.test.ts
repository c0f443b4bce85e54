import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import {
  indexFrom,
  inventoryFrom,
  NO_SIDES,
  packInventory,
  packSide,
  SIDES,
  type StoredInventory,
  withinLimit,
} from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import { ATTACHMENT_LEVEL } from '../../bundle/release.ts'
import type { AttachmentEntry, ImageEntry } from '../../bundle/types.ts'
import { compress, compressAgainst } from '../../bundle/zstd.ts'
import { randomFrom } from '../device-install/model.ts'
import { changedEntries, type Entry, encodeEntries, randomEntry } from './indexes.ts'

// Chunk indexes and inventories as patches: exact, small where little changed, and never believed.

const seed = Number(process.env['BISTABLE_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
console.log(`sides: BISTABLE_SEED=${seed}`)
const random = randomFrom(seed)
const below = (n: number): number => Math.floor(random() * n)
const digest = (text: string): Sha256 => sha256(Buffer.from(text))

const entry = (): Entry => randomEntry(random)
const encode = encodeEntries

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.from(a).equals(b)
const signed = (bytes: Uint8Array) =>
  ({ name: 'rootfs', index: { length: bytes.length, sha256: sha256(bytes) } }) as ImageEntry

function codeOf(action: () => unknown): string {
  try {
    action()
  } catch (error) {
    return isBistableError(error) ? error.code : String(error)
  }
  return 'none'
}

describe('an index from the one before', () => {
  it('whatever chunks came, went, moved or changed: the same bytes, about 40 for each new chunk', () => {
    for (let round = 0; round < 25; round++) {
      const old = Array.from({ length: 1 + below(1500) }, entry)
      const changes = below(30)
      const next = changedEntries(random, old, changes, entry)
      const [before, after] = [encode(old), encode(next)]
      const side = packSide(after, before, after.length)
      if (side.length === 0) continue
      expect(same(indexFrom(side, before, signed(after)), after)).toBe(true)
      const fresh = next.filter((one) => !old.includes(one)).length
      expect(side.length).toBeLessThan(200 + fresh * 90 + changes * 30)
    }
  })

  it('with bytes flipped, cut, added, of another index, or for another length: refused, never other bytes', () => {
    const old = Array.from({ length: 300 }, entry)
    const [before, after] = [encode(old), encode([...old.slice(0, 100), entry(), entry(), ...old.slice(110)])]
    const side = packSide(after, before, after.length)
    const image = signed(after)
    const hostile: Uint8Array[] = [new Uint8Array(0), side.subarray(0, -1), Buffer.concat([side, Buffer.alloc(1)])]
    for (let n = 0; n < 300; n++)
      hostile.push(side.map((byte, i) => (i === n % side.length ? byte ^ (1 + below(255)) : byte)))
    let refused = 0
    for (const bytes of hostile) {
      const code = codeOf(() => expect(same(indexFrom(bytes, before, image), after)).toBe(true))
      // Bits that a frame's header leaves unused change nothing.
      if (code !== 'none') refused++
      expect(code).toMatch(/^(DELTA_INVALID|DELTA_DIGEST|none)$/)
    }
    expect(refused).toBeGreaterThan(hostile.length * 0.9)
    expect(codeOf(() => indexFrom(side, encode(old.slice(1)), image))).toMatch(/^DELTA_/)
    const longer = { ...image, index: { ...image.index, length: after.length + 76 } }
    expect(codeOf(() => indexFrom(side, before, longer))).toBe('DELTA_INVALID')
  })

  it('that unpacks to more than was signed: refused before it is unpacked', () => {
    const before = encode([entry()])
    const bomb = compressAgainst(Buffer.alloc(4 * 1024 * 1024), before, 17)
    expect(bomb.length).toBeLessThan(10_000)
    const held = process.memoryUsage().arrayBuffers
    expect(codeOf(() => indexFrom(bomb, before, signed(before)))).toBe('DELTA_INVALID')
    expect(process.memoryUsage().arrayBuffers - held).toBeLessThan(1024 * 1024)
  })
})

function inventory(text: string, level = ATTACHMENT_LEVEL): StoredInventory {
  const stored = compress(Buffer.from(text), level)
  const facts = { length: stored.length, sha256: sha256(stored), unpacked: Buffer.byteLength(text) }
  return { stored, entry: { name: 'inventory', ...facts } }
}
const lines = (change: number): string =>
  Array.from({ length: 500 }, (_, i) => `${i} ${digest(`${i} ${i === change}`)}\n`).join('')

describe('an inventory from the one before', () => {
  it('is made again as it is stored and signed', () => {
    const [old, next] = [inventory(lines(-1)), inventory(lines(77))]
    const side = packInventory(old, next)
    expect(side.length).toBeLessThan(next.stored.length / 50)
    expect(same(inventoryFrom(side, old, next.entry), next.stored)).toBe(true)
    expect(codeOf(() => inventoryFrom(side, inventory(lines(5)), next.entry))).toMatch(/^DELTA_/)
    expect(codeOf(() => inventoryFrom(side, old, { ...next.entry, sha256: old.entry.sha256 }))).toBe('DELTA_DIGEST')
  })

  it('is left to be fetched when it could not be made again, is huge, or would save nothing', () => {
    const old = inventory(lines(-1))
    expect(packInventory(old, inventory(lines(77), 3))).toHaveLength(0)
    expect(packInventory(inventory('a'), inventory('b'))).toHaveLength(0)
    const huge: AttachmentEntry = { ...old.entry, unpacked: 17 * 1024 * 1024 }
    expect(packInventory(old, { ...old, entry: huge })).toHaveLength(0)
    expect(codeOf(() => inventoryFrom(Buffer.alloc(9), old, huge))).toBe('DELTA_INVALID')
  })
})

it('sides that would make a head too long are left out, the largest first', () => {
  const sides = { boot: Buffer.alloc(10), rootfs: Buffer.alloc(500), inventory: Buffer.alloc(300) }
  const lengths = (room: number) => SIDES.map((name) => withinLimit(sides, room)[name].length)
  expect(lengths(810)).toEqual([10, 500, 300])
  expect(lengths(809)).toEqual([10, 0, 300])
  expect(lengths(12)).toEqual([10, 0, 0])
  expect(lengths(-1)).toEqual([0, 0, 0])
  expect(SIDES.map((name) => NO_SIDES[name].length)).toEqual([0, 0, 0])
})
