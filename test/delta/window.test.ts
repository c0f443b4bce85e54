import { describe, expect, it } from 'vitest'
import { KEPT_CONTENT, type OldImage, OldWindow, openOldImage } from '../../bundle/delta/old.ts'
import { VarintReader } from '../../bundle/delta/varint.ts'
import { OldSources } from '../../publisher/delta/sources.ts'
import { UnitBuilder } from '../../publisher/delta/unit.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { randomFrom } from '../device-install/model.ts'

// Releases that have little in common make patches whose orders jump about in the old image. A device keeps what it unpacked,
// up to a bound, and refuses to unpack for ever; so what the publisher asks it to hold stays below that bound.

const bytes = noise(KEPT_CONTENT * 1.5, 'old')
const imageOf = (of: Buffer): Promise<OldImage> =>
  openOldImage({ read: async (at, n) => of.subarray(at, at + n) }, of.length)

async function jump(image: OldImage, length: number): Promise<void> {
  const count = image.extents.find(length - 1) + 1
  const window = new OldWindow(image, [{ first: 0, count }])
  const random = randomFrom(7)
  for (let n = 0; n < 40_000; n++) {
    const at = Math.floor(random() * window.length)
    expect((await window.from(at))[0]).toBe(bytes[at])
  }
}

describe('a window', () => {
  it('of what a device keeps is unpacked once, wherever the orders jump; a larger one is refused', async () => {
    const image = await imageOf(bytes)
    await jump(image, KEPT_CONTENT)
    expect(image.unpacked).toBe(image.extents.find(KEPT_CONTENT - 1) + 1)
    expect(await codeOfAsync(async () => jump(await imageOf(bytes), bytes.length))).toBe('DELTA_INVALID')
  })

  it('of a unit is never more than a device keeps', async () => {
    const changed = Buffer.from(bytes)
    const next = await imageOf(changed)
    const { extents } = next
    // Each piece is made of two old ones that stand far apart.
    for (let n = 0; n < extents.count; n++) {
      const { at, length } = extents.get(n)
      const other = extents.get((n + Math.floor(extents.count / 2)) % extents.count)
      bytes.copy(changed, at + length / 2, other.at, other.at + length / 2)
    }
    const old = await OldSources.open(await imageOf(bytes))
    const unit = new UnitBuilder(old, next, { level: 1, blockSize: 131_072 }, new Map())
    let n = 0
    for (; n < extents.count && !unit.full; n++) {
      const { at, length } = extents.get(n)
      await unit.add(n, { offset: at, length } as Parameters<UnitBuilder['add']>[1], [n], true)
    }
    expect(n).toBeLessThan(extents.count)
    const words = new VarintReader((await unit.finish()).window, 'window')
    let [end, held] = [0, 0]
    while (!words.ended) {
      const first = end + words.take(2 ** 40)
      end = first + words.take(2 ** 16)
      for (let index = first; index < end; index++) held += extents.stride(index)
    }
    expect(held).toBeGreaterThan(KEPT_CONTENT * 0.8)
    expect(held).toBeLessThanOrEqual(KEPT_CONTENT)
  })
})
