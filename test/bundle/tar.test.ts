import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { parseTarHeader, tarHeader, tarMemberSize, tarPadding } from '../../bundle/tar.ts'
import { haveTool } from './tools.ts'

const LIMIT = 8 ** 11
const anySize = fc.oneof(fc.nat(100_000), fc.maxSafeNat(), fc.constantFrom(0, LIMIT - 1, LIMIT, LIMIT + 1, 2 ** 32))

test('a header is read back as what it was made from', () => {
  fc.assert(
    fc.property(fc.stringMatching(/^[!-~]{1,100}$/), anySize, (name, size) => {
      expect(parseTarHeader(tarHeader(name, size))).toEqual({ name, size })
    }),
  )
})

test('every flipped bit of a header makes it another header or none', () => {
  for (const size of [18, LIMIT + 5]) {
    const header = tarHeader('data/rootfs', size)
    for (let at = 0; at < 512; at++)
      for (let bit = 0; bit < 8; bit++) {
        const changed = Buffer.from(header)
        changed[at] = (changed[at] ?? 0) ^ (1 << bit)
        expect(parseTarHeader(changed), `byte ${at} bit ${bit}`).toBeUndefined()
      }
  }
})

test('sizes: octal below 8^11, base-256 from there on', () => {
  expect(Buffer.from(tarHeader('x', LIMIT - 1)).toString('latin1', 124, 136)).toBe('77777777777\0')
  expect(Buffer.from(tarHeader('x', LIMIT)).toString('hex', 124, 136)).toBe('800000000000000200000000')
  const tooLarge = Buffer.from(tarHeader('x', LIMIT))
  tooLarge.writeBigUInt64BE(2n ** 60n, 128)
  expect(parseTarHeader(tooLarge)).toBeUndefined()
})

test('padding', () => {
  expect([0, 1, 511, 512, 513].map(tarPadding)).toEqual([0, 511, 1, 0, 511])
  expect([0, 1, 512, 513].map(tarMemberSize)).toEqual([512, 1024, 1024, 1536])
  expect(() => tarHeader('with space', 1)).toThrow(RangeError)
  expect(() => tarHeader('x', -1)).toThrow(RangeError)
})

test.skipIf(!haveTool('tar'))('GNU tar reads both forms of the size', () => {
  // --occurrence stops after the first member, so its content need not be there; the listing comes from the header.
  for (const size of [1234, LIMIT - 1, LIMIT, LIMIT * 3]) {
    const list = () => execFileSync('tar', ['tvf', '-'], { input: tarHeader('data/rootfs', size), stdio: 'pipe' })
    let out = ''
    try {
      out = list().toString()
    } catch (error) {
      out = String((error as { stdout?: Buffer }).stdout)
    }
    expect(out).toMatch(new RegExp(` ${size} .*data/rootfs`))
  }
})
