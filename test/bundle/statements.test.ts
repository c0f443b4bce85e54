import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import { encodeFreshness, type FreshnessStatement, isSafePath, parseFreshness } from '../../bundle/freshness.ts'
import { encodeRelease, parseRelease, unknownReleaseFields } from '../../bundle/release.ts'
import type { ReleaseStatement } from '../../bundle/types.ts'
import { MAX_SIGNED_BYTES } from '../../keys/dsse.ts'
import { SHA, STATEMENT } from './fixture.ts'

type Loose = Record<string, unknown>
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))
const [boot, rootfs] = STATEMENT.images
const [inventory] = STATEMENT.attachments

/** What the statement with these changes is refused for. */
function complaint(changes: Loose): string {
  try {
    parseRelease(bytes({ ...STATEMENT, ...changes }))
  } catch (error) {
    expect(error).toMatchObject({ name: 'BistableError', code: 'RELEASE_INVALID' })
    return (error as Error).message
  }
  return 'accepted'
}

describe('release statement', () => {
  test('survives encoding; fields in fixed order, whatever the order they came in', () => {
    expect(parseRelease(encodeRelease(STATEMENT))).toEqual(STATEMENT)
    const shuffled = Object.fromEntries(Object.entries(STATEMENT).reverse()) as unknown as ReleaseStatement
    const text = Buffer.from(encodeRelease(shuffled)).toString()
    expect(text).toBe(JSON.stringify(STATEMENT))
    expect(text.startsWith('{"type":"release","product":"demo","hardware":["qemu-x86_64"],"number":')).toBe(true)
  })

  test.each<[string, Loose]>([
    ['type', { type: 'root' }],
    ['product', { product: '../x' }],
    ['product', { product: undefined }],
    ['hardware', { hardware: [] }],
    ['hardware', { hardware: ['a', 'a'] }],
    ['hardware.1', { hardware: ['a', 'b c'] }],
    ['number.counter', { number: { epoch: 0, counter: -1 } }],
    ['number.epoch', { number: { epoch: '1', counter: 1 } }],
    ['version', { version: 'two\u001b[2J' }],
    ['version', { version: '' }],
    ['securityFloor', { securityFloor: { epoch: 0, counter: 8 } }],
    ['rootVersion', { rootVersion: 0 }],
    ['issued', { issued: '2026-02-30T00:00:00Z' }],
    ['issued', { issued: '2026-11-21' }],
    ['images', { images: [boot] }],
    ['images', { images: [rootfs, boot] }],
    ['images', { images: [boot, rootfs, rootfs] }],
    ['images.0.length', { images: [{ ...boot, length: 4097 }, rootfs] }],
    ['images.0.root', { images: [{ ...boot, root: SHA.toUpperCase() }, rootfs] }],
    ['images.0.index.length', { images: [{ ...boot, index: { length: 101, sha256: SHA } }, rootfs] }],
    ['images.0.index.length', { images: [{ ...boot, index: { length: 2 ** 40, sha256: SHA } }, rootfs] }],
    ['data is longer', { images: [{ ...boot, data: { length: 8193 } }, rootfs] }],
    ['attachments', { attachments: [inventory, inventory] }],
    ['attachments', { attachments: [{ ...inventory, name: 'sbom' }, inventory] }],
    ['attachments.0.name', { attachments: [{ ...inventory, name: 'script' }] }],
    ['attachments.0.length', { attachments: [{ ...inventory, length: 64 * 1024 * 1024 + 1 }] }],
    ['attachments.0.unpacked', { attachments: [{ ...inventory, unpacked: 512 * 1024 * 1024 + 1 }] }],
  ])('%s is checked', (where, changes) => {
    expect(complaint(changes)).toContain(where)
  })

  test('all bad fields are named at once', () => {
    const found = complaint({ product: 7, hardware: [], rootVersion: -1, issued: 'today' })
    for (const field of ['product', 'hardware', 'rootVersion', 'issued']) expect(found).toContain(`${field}: `)
  })

  test('not an object, not strict JSON', () => {
    for (const value of [null, [], 'release', 7]) expect(() => parseRelease(bytes(value))).toThrow(/release statement/)
    expect(() => parseRelease(Buffer.from('{"type":"release","type":"release"}'))).toThrow(
      expect.objectContaining({ code: 'JSON_INVALID' }),
    )
  })

  test('unknown fields are ignored and named; a critical one must be known', () => {
    const more = { ...STATEMENT, colour: 'red', images: [{ ...boot, shape: 1 }, rootfs] }
    expect(parseRelease(bytes(more))).toEqual(STATEMENT)
    expect(unknownReleaseFields(bytes(more))).toEqual(['images.0.shape', 'colour'])
    // What all objects have is known to none of them.
    const inherited = { ...STATEMENT, toString: 1, number: { ...STATEMENT.number, constructor: {} } }
    expect(unknownReleaseFields(bytes(inherited))).toEqual(['number.constructor', 'toString'])
    expect(parseRelease(bytes({ ...STATEMENT, critical: ['images'] }))).toEqual(STATEMENT)
    expect(unknownReleaseFields(bytes({ ...STATEMENT, critical: ['images'] }))).toEqual([])
    expect(() => parseRelease(bytes({ ...more, critical: ['images', 'colour'] }))).toThrow(
      expect.objectContaining({ code: 'RELEASE_CRITICAL' }),
    )
    // What a newer format changed may well look malformed here: the message must be about the age of this reader.
    expect(() => parseRelease(bytes({ ...more, images: 'elsewhere', critical: ['colour'] }))).toThrow(/colour/)
    expect(complaint({ critical: 'images' })).toContain('critical')
    expect(complaint({ critical: [1] })).toContain('critical')
  })

  test('an encoder refuses what a parser would', () => {
    expect(() => encodeRelease({ ...STATEMENT, product: '' })).toThrow(
      expect.objectContaining({ code: 'RELEASE_INVALID' }),
    )
  })
})

test('numbers compare by epoch, then counter', () => {
  const number = fc.record({ epoch: fc.nat(3), counter: fc.nat(3) })
  fc.assert(
    fc.property(number, number, (a, b) => {
      const want = a.epoch * 10 + a.counter - (b.epoch * 10 + b.counter)
      expect(Math.sign(compareNumbers(a, b))).toBe(Math.sign(want))
    }),
  )
  expect(formatNumber({ epoch: 1, counter: 42 })).toBe('1.42')
})

describe('freshness statement', () => {
  const fresh: FreshnessStatement = {
    type: 'freshness',
    product: 'demo',
    channel: 'stable',
    number: { epoch: 0, counter: 7 },
    release: SHA,
    path: 'bundles/demo-0.7.bundle',
    size: 123_456,
    rootVersion: 2,
    issued: '2026-11-21T00:00:00Z',
    expires: '2026-11-22T00:00:00Z',
  }

  test('survives encoding, in fixed order', () => {
    expect(parseFreshness(encodeFreshness(fresh))).toEqual(fresh)
    const shuffled = Object.fromEntries(Object.entries(fresh).reverse()) as unknown as FreshnessStatement
    expect(Buffer.from(encodeFreshness(shuffled)).toString()).toBe(JSON.stringify(fresh))
  })

  test.each<[string, Loose]>([
    ['type', { type: 'release' }],
    ['channel', { channel: 'a/b' }],
    ['release', { release: 'abc' }],
    ['size', { size: 0 }],
    ['rootVersion', { rootVersion: 1.5 }],
    ['expires', { expires: 'never' }],
    ['expires is not after issued', { expires: fresh.issued }],
    ['path', { path: '../bundles/x' }],
  ])('%s is checked', (where, changes) => {
    const given = bytes({ ...fresh, ...changes })
    if (changes['rootVersion'] !== 1.5)
      expect(() => parseFreshness(given)).toThrow(expect.objectContaining({ code: 'FRESHNESS_INVALID' }))
    else expect(() => parseFreshness(given)).toThrow(expect.objectContaining({ code: 'JSON_INVALID' }))
    if (changes['rootVersion'] !== 1.5) expect(() => parseFreshness(given)).toThrow(where)
  })

  test('names patches: at most 8, by safe paths, within what may be signed', () => {
    const delta = { from: SHA, path: `deltas/${'d'.repeat(120)}.delta`, size: 1000, head: { length: 500, sha256: SHA } }
    const deltas = Array.from({ length: 8 }, () => delta)
    const encoded = encodeFreshness({ ...fresh, deltas })
    expect(encoded.length).toBeLessThanOrEqual(MAX_SIGNED_BYTES)
    expect(parseFreshness(encoded)).toEqual({ ...fresh, deltas })
    for (const wrong of [
      [...deltas, delta],
      [{ ...delta, path: '../x' }],
      [{ ...delta, size: 0 }],
      [{ from: SHA }],
      'x',
    ])
      expect(() => parseFreshness(bytes({ ...fresh, deltas: wrong }))).toThrow(
        expect.objectContaining({ code: 'FRESHNESS_INVALID' }),
      )
  })

  test('paths stay where they belong', () => {
    for (const good of ['a', 'bundles/demo-1.2.bundle', '_x/y.z', 'A-b_c.D']) expect(isSafePath(good), good).toBe(true)
    for (const bad of [
      '',
      '/a',
      'a/',
      'a//b',
      '.',
      '..',
      'a/../b',
      'a/..',
      './a',
      'a/.hidden',
      'http://host/a',
      'file:a',
      'a?b',
      'a#b',
      'a%2e%2e/b',
      'a\\b',
      'a b',
      'a\n',
      'é',
      '-x',
      'a'.repeat(256),
    ])
      expect(isSafePath(bad), bad).toBe(false)
  })
})
