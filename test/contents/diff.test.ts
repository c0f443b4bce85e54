import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compareUtf8, type Sha256 } from '../../base/bytes.ts'
import { runCli } from '../../base/cli.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { differingAspects, diffFiles, type FileDifference } from '../../bundle/diff.ts'
import { diffVerbs } from '../../bundle/diff-cli.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { packImage } from '../../bundle/pack.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import { makeBundle, memorySource } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { contentOf, entriesOf, haveTools, type Item, scratch, sqfstar } from '../squashfs/build.ts'

const text = (s: string) => Buffer.from(s)
const database = (version: string, more = '') =>
  text(`Package: app\nStatus: install ok installed\nVersion: ${version}\nArchitecture: amd64\n\n${more}`)
const folders = ['var', 'var/lib', 'var/lib/dpkg'].map((path): Item => ({ path, type: 'dir', mode: 0o755 }))
const before: readonly Item[] = [
  ...folders,
  { path: 'content', type: 'file', content: noise(50_000, 'before') },
  { path: 'gone', type: 'file', content: text('gone') },
  { path: 'link', type: 'symlink', target: 'a', mode: 0o777 },
  { path: 'mode', type: 'file', mode: 0o644 },
  { path: 'owner', type: 'file' },
  { path: 'same', type: 'file', content: noise(900_000), mtime: 5 },
  { path: 'type', type: 'file' },
  { path: 'var/lib/dpkg/status', type: 'file', content: database('1.0') },
  { path: 'xattr', type: 'file', xattrs: { 'user.a': text('1') } },
]
const after: readonly Item[] = [
  ...folders,
  { path: 'content', type: 'file', content: noise(60_000, 'after') },
  { path: 'link', type: 'symlink', target: 'b', mode: 0o777 },
  { path: 'mode', type: 'file', mode: 0o4755 },
  { path: 'new\u202e', type: 'file', content: text('new') },
  { path: 'owner', type: 'file', uid: 5, gid: 6 },
  { path: 'same', type: 'file', content: noise(900_000), mtime: 6 },
  { path: 'type', type: 'dir', mode: 0o644 },
  {
    path: 'var/lib/dpkg/status',
    type: 'file',
    content: database('1.1', 'Package: lib\nVersion: 2\nArchitecture: all\n'),
  },
  { path: 'xattr', type: 'file', xattrs: { 'user.a': text('2') } },
]

async function run(...argv: string[]): Promise<{ code: number; out: string[]; err: string[] }> {
  const out: string[] = []
  const err: string[] = []
  const terminal = { out: (line: string) => out.push(line), err: (line: string) => err.push(line), interactive: false }
  const code = await runCli(diffVerbs, argv, terminal, new AbortController().signal)
  return { code, out, err }
}

async function bundleOf(items: readonly Item[], version: string): Promise<string> {
  const rootfs = readFileSync(await sqfstar(items, '-comp', 'zstd', '-b', '64K'))
  return (await makeBundle({ rootfs, release: { version } })).path
}

const ready = haveTools('sqfstar')

describe.skipIf(!ready)('diff of two releases', () => {
  it('tells people', async () => {
    const a = await bundleOf(before, '1.0.0')
    const b = await bundleOf(after, '2.0.0')
    const { code, out, err } = await run('diff', a, b)
    expect(err).toEqual([])
    expect(code).toBe(0)
    expect(out).toEqual([
      `A ${a}: demo 0.7 (version 1.0.0)`,
      `B ${b}: demo 0.7 (version 2.0.0)`,
      'boot image: same',
      'packages: 1 added, 0 removed, 1 changed',
      '  ~ app:amd64 1.0 -> 1.1',
      '  + lib:all 2',
      'files: 1 added, 1 removed, 7 changed',
      '  ~ /content (content 49 KiB -> 59 KiB)',
      '  - /gone (file, 4 B)',
      '  ~ /link (target)',
      '  ~ /mode (mode 0644 -> 4755)',
      '  + /new\\u202e (file, 3 B)',
      '  ~ /owner (owner 0:0 -> 5:6)',
      '  ~ /type (file -> dir)',
      '  ~ /var/lib/dpkg/status (content 80 B -> 120 B)'
        .replace('80 B', `${database('1.0').length} B`)
        .replace('120 B', `${database('1.1', 'Package: lib\nVersion: 2\nArchitecture: all\n').length} B`),
      '  ~ /xattr (xattrs)',
      'NOT AUTHENTICATED: this is what the files say. Use verify --root on each bundle first.',
    ])
    const short = await run('diff', a, b, '--limit', '2')
    expect(short.out).toContain('  and 7 more (--limit)')
    expect(short.out.filter((line) => line.startsWith('  ~ /'))).toHaveLength(1)
  })

  it('tells programs, and takes SquashFS images', async () => {
    const a = await sqfstar(before, '-comp', 'gzip')
    const b = await bundleOf(after, '2.0.0')
    const { code, out } = await run('diff', a, b, '--json', '--limit', '3')
    expect(code).toBe(0)
    const said = JSON.parse(out.join('')) as Record<string, unknown>
    expect(said).toMatchObject({
      ok: true,
      authenticated: false,
      a: { file: a, kind: 'squashfs' },
      b: { kind: 'bundle', product: 'demo', release: '0.7', version: '2.0.0' },
      boot: 'unknown',
      files: { counts: { added: 1, removed: 1, changed: 7 } },
      packages: {
        added: [{ name: 'lib' }],
        removed: [],
        changed: [{ before: { version: '1.0' }, after: { version: '1.1' } }],
      },
    })
    const { list } = said['files'] as { list: FileDifference[] }
    expect(list.map((one) => one.kind)).toEqual(['changed', 'removed', 'changed'])
    expect(list[0]).toMatchObject({
      aspects: ['content'],
      before: { path: '/content', size: 50_000 },
      after: { size: 60_000 },
    })
  })

  it('finds no difference where there is none, whatever the compression', async () => {
    const { out } = await run(
      'diff',
      await sqfstar(before, '-comp', 'gzip'),
      await sqfstar(before, '-comp', 'zstd', '-b', '4K'),
    )
    expect(out).toContain('files: 0 added, 0 removed, 0 changed')
    expect(out).toContain('packages: 0 added, 0 removed, 0 changed')
  })

  it('refuses other files and wrong arguments', async () => {
    const image = await sqfstar(before)
    const page = join(scratch(), 'page.html')
    writeFileSync(page, '<html></html>')
    expect((await run('diff', image, page)).err.join()).toContain('DIFF_INPUT')
    expect((await run('diff', page, image, '--json')).code).toBe(3)
    writeFileSync(page, '')
    expect((await run('diff', image, page)).err.join()).toContain('DIFF_INPUT')
    expect((await run('diff', image)).code).toBe(2)
    expect((await run('diff', image, image, image)).code).toBe(2)
    expect((await run('diff', image, image, '--limit', 'many')).code).toBe(2)
    expect((await run('diff', image, `${image}.not-there`)).err.join()).toContain('SOURCE_OPEN')
  })
})

describe.skipIf(!ready)('an image inside a bundle', () => {
  it('reads as the image itself, at any place', async () => {
    // Zeros compress: some chunks are stored as zstd, some raw.
    const rootfs = Buffer.concat([readFileSync(await sqfstar(before, '-noD', '-noF')), Buffer.alloc(3 << 20)])
    const path = join(scratch(), 'rootfs')
    writeFileSync(path, rootfs)
    const { index, dataPath } = await packImage(path, { compress: true })
    const source = await fileSource(dataPath)
    try {
      expect(new Set(index.chunks.map((chunk) => chunk.encoding)).size).toBe(2)
      const reader = chunkImage(source, 0, index)
      await fc.assert(
        fc.asyncProperty(fc.nat(rootfs.length), fc.nat(1 << 21), async (at, length) => {
          const end = Math.min(at + length, rootfs.length)
          expect(Buffer.compare(await reader.read(at, end - at), rootfs.subarray(at, end))).toBe(0)
        }),
        { numRuns: 60 },
      )
      await expect(reader.read(rootfs.length - 1, 2)).rejects.toThrow(RangeError)
      const image = await openSquashfs(reader, index.imageLength)
      const same = (await entriesOf(image)).find((entry) => entry.path === 'same')
      expect(same && (await contentOf(image, same)).equals(noise(900_000))).toBe(true)
    } finally {
      await source.close()
    }
  })

  it('a flipped bit is refused, not compared', async () => {
    const rootfs = readFileSync(await sqfstar(before, '-comp', 'zstd'))
    const { bytes } = await makeBundle({ rootfs })
    const { head } = await inspectBundle(memorySource(bytes))
    const at = head.offsets.data.rootfs + 2000
    bytes[at] = (bytes[at] ?? 0) ^ 1
    const path = join(scratch(), 'flipped.bundle')
    writeFileSync(path, bytes)
    expect((await run('diff', path, path)).err.join()).toContain('BUNDLE_DIGEST')
    const reader = chunkImage(memorySource(bytes), head.offsets.data.rootfs, head.indexes.rootfs)
    expect(await codeOfAsync(() => reader.read(2000, 1))).toBe('BUNDLE_DIGEST')
  })
})

describe('differences of inventories', () => {
  const names = fc.uniqueArray(fc.constantFrom('/a', '/a-b', '/a/b', '/a0', '/b', '/\u{1f600}', '/\uffff'), {
    maxLength: 7,
  })
  const made = (all: string[], sizes: number[]): InventoryEntry[] =>
    all.sort(compareUtf8).map((path, n) => ({
      path,
      type: 'file',
      mode: 0o644,
      uid: 0,
      gid: 0,
      size: sizes[n] ?? 0,
      digest: `${sizes[n] ?? 0}`.repeat(64) as Sha256,
    }))
  const inventory = fc.tuple(names, fc.array(fc.nat(1), { maxLength: 7 })).map(([all, sizes]) => made(all, sizes))

  it('say the same as comparing two maps, and turn round when the sides do', async () => {
    await fc.assert(
      fc.asyncProperty(inventory, inventory, async (a, b) => {
        const found: FileDifference[] = []
        for await (const one of diffFiles(a, b)) found.push(one)
        const left = new Map(a.map((one) => [one.path, one]))
        const right = new Map(b.map((one) => [one.path, one]))
        const wanted = [...new Set([...left.keys(), ...right.keys()])].sort(compareUtf8).flatMap((path) => {
          const was = left.get(path)
          const is = right.get(path)
          if (was === undefined) return [`added ${path}`]
          if (is === undefined) return [`removed ${path}`]
          return was.digest === is.digest ? [] : [`changed ${path}`]
        })
        const said = (one: FileDifference) => `${one.kind} ${one.kind === 'changed' ? one.after.path : one.entry.path}`
        expect(found.map(said)).toEqual(wanted)
      }),
    )
  })

  it('name each aspect', () => {
    const one: InventoryEntry = { path: '/x', type: 'char', mode: 0, uid: 0, gid: 0, rdev: [1, 2] }
    expect(differingAspects(one, one)).toEqual([])
    expect(differingAspects(one, { ...one, rdev: [1, 3] })).toEqual(['device'])
    expect(differingAspects(one, { ...one, type: 'block' })).toEqual(['type'])
    expect(differingAspects(one, { ...one, gid: 1, mode: 1, xattrs: { 'user.a': '' } })).toEqual([
      'mode',
      'owner',
      'xattrs',
    ])
  })
})
