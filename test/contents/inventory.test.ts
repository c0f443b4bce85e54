import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compareUtf8, type Sha256 } from '../../base/bytes.ts'
import { buildInventory, encodeInventory, encodeInventoryEntry, parseInventory } from '../../bundle/inventory.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { haveTools, type Item, openPath, scratch, sqfstar, tool } from '../squashfs/build.ts'

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const one of stream) all.push(one)
  return all
}

const parseText = (text: string | Uint8Array) => collect(parseInventory([Buffer.from(text)]))

describe.skipIf(!haveTools('sqfstar', 'fsverity'))('inventory of an image', () => {
  it('has every path, with the digest that fsverity computes', async () => {
    const sizes = [0, 1, 4096, 4097, 600_000]
    const items: Item[] = [
      { path: 'dev', type: 'char', rdev: [5, 1], mode: 0o620, gid: 5 },
      ...sizes.map((size): Item => ({ path: `f${size}`, type: 'file', content: noise(size, `${size}`), uid: 7 })),
      { path: 'hard', type: 'link', target: 'f4097' },
      { path: 'link', type: 'symlink', target: 'f1', mode: 0o777 },
      { path: 'x', type: 'dir', mode: 0o755, xattrs: { 'user.k': Buffer.from('value') } },
    ]
    const { image } = await openPath(await sqfstar(items, '-comp', 'zstd', '-root-mode', '755'))
    const entries = await collect(buildInventory(image))
    expect(entries.map((entry) => entry.path)).toEqual(['/', ...items.map(({ path }) => `/${path}`).sort(compareUtf8)])

    const folder = scratch()
    for (const size of sizes) {
      const file = join(folder, `${size}`)
      writeFileSync(file, noise(size, `${size}`))
      const wanted = /^sha256:([0-9a-f]{64})/.exec(tool('fsverity', 'digest', file))?.[1]
      expect(entries.find(({ path }) => path === `/f${size}`)).toEqual({
        path: `/f${size}`,
        type: 'file',
        mode: 0o644,
        uid: 7,
        gid: 0,
        size,
        digest: wanted,
      })
    }
    const at = (path: string) => entries.find((entry) => entry.path === path)
    expect(at('/hard')?.digest).toBe(at('/f4097')?.digest)
    expect(at('/link')).toEqual({ path: '/link', type: 'symlink', mode: 0o777, uid: 0, gid: 0, target: 'f1' })
    expect(at('/dev')).toEqual({ path: '/dev', type: 'char', mode: 0o620, uid: 0, gid: 5, rdev: [5, 1] })
    expect(at('/x')?.xattrs).toEqual({ 'user.k': 'dmFsdWU=' })

    const bytes = Buffer.concat(await collect(encodeInventory(entries)))
    expect(bytes.toString()).toBe(entries.map(encodeInventoryEntry).join(''))
    expect(await parseText(bytes)).toEqual(entries)
  })

  it('refuses a path with control characters, and stops when told to', async () => {
    const bell = await openPath(await sqfstar([{ path: 'be\x07ll', type: 'fifo' }]))
    expect(await codeOfAsync(() => collect(buildInventory(bell.image)))).toBe('INVENTORY_PATH')
    const stop = AbortSignal.abort(new Error('stopped'))
    await expect(collect(buildInventory(bell.image, { signal: stop }))).rejects.toThrow('stopped')
  })
})

const digest = fc.constant('ab'.repeat(32) as Sha256)
const base = {
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.integer({ min: 0, max: 0xffffffff }),
  gid: fc.nat(),
}
const part = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 6 })
  .filter((s) => !/[/\p{Cc}]/u.test(s) && s !== '.' && s !== '..')
const path = fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => `/${parts.join('/')}`)
const xattrs = fc.dictionary(
  part.map((s) => `user.${s}`),
  fc.uint8Array({ maxLength: 8 }).map((bytes) => Buffer.from(bytes).toString('base64')),
  { minKeys: 1, maxKeys: 3, noNullPrototype: true },
)
const sortedXattrs = xattrs.map((all) => Object.fromEntries(Object.entries(all).sort(([a], [b]) => compareUtf8(a, b))))
const entry: fc.Arbitrary<InventoryEntry> = fc.oneof(
  fc.record({ path, type: fc.constant('file' as const), ...base, size: fc.maxSafeNat(), digest, xattrs: sortedXattrs }),
  fc.record({ path, type: fc.constant('file' as const), ...base, size: fc.maxSafeNat(), digest }),
  fc.record({
    path,
    type: fc.constant('symlink' as const),
    ...base,
    target: fc.string({ minLength: 1, unit: 'grapheme' }),
  }),
  fc.record({
    path,
    type: fc.constantFrom('char' as const, 'block' as const),
    ...base,
    rdev: fc.tuple(fc.nat(0xfff), fc.nat(0xfffff)),
  }),
  fc.record({ path, type: fc.constantFrom('dir' as const, 'fifo' as const, 'socket' as const), ...base }),
)
const ROOT: InventoryEntry = { path: '/', type: 'dir', mode: 0o755, uid: 0, gid: 0 }

describe('inventory text', () => {
  it('is read back as it was written, in any pieces', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(entry, { selector: (e) => e.path, maxLength: 8 }),
        fc.integer({ min: 1, max: 99 }),
        async (some, step) => {
          const all = [ROOT, ...some.sort((a, b) => compareUtf8(a.path, b.path))]
          const bytes = Buffer.concat(await collect(encodeInventory(all)))
          const pieces: Uint8Array[] = []
          for (let at = 0; at < bytes.length; at += step) pieces.push(bytes.subarray(at, at + step))
          expect(await collect(parseInventory(pieces))).toEqual(all)
        },
      ),
      { numRuns: 100 },
    )
  })

  const root = encodeInventoryEntry(ROOT)
  const file = { path: '/f', type: 'file', mode: 0, uid: 0, gid: 0, size: 1, digest: 'ab'.repeat(32) }
  const line = (change: Record<string, unknown>) => `${root}${JSON.stringify({ ...file, ...change })}\n`
  const refused: Record<string, string | Uint8Array> = {
    nothing: '',
    'no root': `${JSON.stringify(file)}\n`,
    'no end of the last line': root.trimEnd(),
    'an empty line': `${root}\n`,
    'not JSON': `${root}{\n`,
    'not an object': `${root}[]\n`,
    'a space more': `${root}{ ${JSON.stringify(file).slice(1)}\n`,
    'a carriage return': `${root}${JSON.stringify(file)}\r\n`,
    'a byte order mark': `\ufeff${root}`,
    'not UTF-8': Buffer.from([...Buffer.from(root), 0xff, 10]),
    'a key twice': `${root}${JSON.stringify(file).replace('"uid":0', '"uid":0,"uid":0')}\n`,
    'an unknown key': line({ more: 1 }),
    'another order of keys': `${root}${JSON.stringify(Object.fromEntries(Object.entries(file).reverse()))}\n`,
    'the same path twice': `${root}${root}`,
    'a path out of order': `${line({ path: '/b' })}${JSON.stringify({ ...file, path: '/a' })}\n`,
    'a relative path': line({ path: 'f' }),
    'dots in a path': line({ path: '/a/../f' }),
    'two slashes': line({ path: '//f' }),
    'a slash at the end': line({ path: '/f/' }),
    'control characters in a path': line({ path: '/f\n' }),
    'a path of 4097 bytes': line({ path: `/${'f'.repeat(4096)}` }),
    'a mode out of range': line({ mode: 0o10000 }),
    'a negative owner': line({ uid: -1 }),
    'a fraction': line({ size: 1.5 }),
    'a digest in capitals': line({ digest: 'AB'.repeat(32) }),
    'a file without digest': line({ digest: undefined }),
    'a directory with size': line({ type: 'dir' }),
    'a symlink without target': `${root}${JSON.stringify({ ...ROOT, path: '/s', type: 'symlink' })}\n`,
    'a device without number': `${root}${JSON.stringify({ ...ROOT, path: '/s', type: 'char' })}\n`,
    'an unknown type': line({ type: 'door' }),
    'no xattrs': line({ xattrs: {} }),
    'an xattr of no known kind': line({ xattrs: { 'system.a': '' } }),
    'an xattr that is not base64': line({ xattrs: { 'user.a': '=' } }),
    'xattrs out of order': line({ xattrs: { 'user.b': '', 'user.a': '' } }),
    'a line without end': Buffer.alloc(1_600_000, 'a'),
  }
  for (const [what, text] of Object.entries(refused))
    it(`refuses ${what}`, async () => {
      expect(await codeOfAsync(() => parseText(text))).toBe('INVENTORY_INVALID')
    })

  it('takes the lines that the refused ones are made from', async () => {
    expect(await parseText(line({}))).toEqual([ROOT, file])
  })
})
