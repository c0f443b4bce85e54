import { hash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { compareUtf8 } from '../../base/bytes.ts'
import { noise } from '../bundle/tools.ts'
import { contentOf, entriesOf, haveTools, type Item, mksquashfs, openPath, scratch, sqfstar, tool } from './build.ts'

const ready = haveTools('sqfstar', 'mksquashfs', 'unsquashfs')

const text = (s: string) => Buffer.from(s)

/** One of everything; sizes stand around the borders of small and of large blocks. */
const sizes = [0, 1, 4095, 4096, 4097, 12_288, 131_071, 131_072, 131_073, 300_000, 1_048_576, 1_048_577]
const items: readonly Item[] = [
  { path: 'a', type: 'dir', mode: 0o755, uid: 1, gid: 2, mtime: 1_000_000_000 },
  {
    path: 'a/plain',
    type: 'file',
    content: text('plain\n'),
    mode: 0o4755,
    uid: 1000,
    gid: 70_000,
    mtime: 2_147_483_647,
  },
  { path: 'a/hard', type: 'link', target: 'a/plain' },
  { path: 'a/same-content', type: 'file', content: text('plain\n') },
  { path: 'a-b', type: 'file', content: text('stands between a and a/ in byte order') },
  { path: 'a/deep', type: 'dir', mode: 0o1777 },
  { path: 'a/deep/er', type: 'dir', mode: 0o700 },
  { path: 'a/deep/er/link', type: 'symlink', target: '../../plain', mode: 0o777 },
  { path: 'a0', type: 'dir', mode: 0o755 },
  { path: 'char', type: 'char', rdev: [10, 130], mode: 0o600 },
  { path: 'block', type: 'block', rdev: [259, 65_536], mode: 0o660 },
  { path: 'fifo', type: 'fifo', mode: 0o600 },
  { path: `${'n'.repeat(255)}`, type: 'file', content: text('long name') },
  { path: 'grüße 漢字 \u{1f600}', type: 'file', content: text('utf-8') },
  { path: 'zeros', type: 'file', content: Buffer.alloc(1_500_000) },
  { path: 'holes', type: 'file', content: Buffer.concat([noise(5000), Buffer.alloc(600_000), noise(70)]) },
  {
    path: 'cap',
    type: 'file',
    content: text('x'),
    mode: 0o755,
    xattrs: { 'security.capability': text('\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0') },
  },
  {
    path: 'marked',
    type: 'dir',
    mode: 0o755,
    xattrs: { 'user.b': text('2'), 'user.a': text('1'), 'trusted.t': text('') },
  },
  { path: 'marked/same', type: 'file', xattrs: { 'user.b': text('2'), 'user.a': text('1') } },
  { path: 'marked/long', type: 'file', xattrs: { 'user.long': text('v'.repeat(9000)) } },
  { path: 'marked/long2', type: 'file', xattrs: { 'user.long': text('v'.repeat(9000)), 'user.x': text('y') } },
  { path: 'marked/link', type: 'symlink', target: 'x', mode: 0o777, xattrs: { 'trusted.l': text('1') } },
  { path: 'marked/fifo', type: 'fifo', xattrs: { 'trusted.f': text('1') } },
  { path: 'marked/dev', type: 'char', rdev: [1, 3], xattrs: { 'trusted.d': text('1') } },
  ...sizes.map((size): Item => ({ path: `size-${size}`, type: 'file', content: noise(size, `size ${size}`) })),
]

const variants: readonly (readonly [name: string, ...options: string[]])[] = [
  ['zstd', '-comp', 'zstd'],
  ['zstd, 4 KiB blocks', '-comp', 'zstd', '-b', '4K'],
  ['zstd, 1 MiB blocks', '-comp', 'zstd', '-b', '1M'],
  ['zstd level 1 without fragments', '-comp', 'zstd', '-Xcompression-level', '1', '-b', '128K', '-no-fragments'],
  ['zstd without tail ends or duplicates check', '-comp', 'zstd', '-no-tailends', '-no-duplicates', '-b', '16K'],
  ['zstd, exportable', '-comp', 'zstd', '-exports'],
  ['gzip', '-comp', 'gzip'],
  ['gzip, 8 KiB blocks', '-comp', 'gzip', '-b', '8K'],
  ['stored', '-comp', 'gzip', '-noI', '-noD', '-noF', '-noX'],
  ['data stored, the rest zstd', '-comp', 'zstd', '-noD', '-noF'],
  ['sparse blocks written out', '-comp', 'zstd', '-no-sparse'],
  ['not padded', '-comp', 'zstd', '-nopad'],
]

describe.skipIf(!ready)('SquashFS reader against sqfstar', () => {
  for (const [name, ...options] of variants)
    it(`reads back what was put in: ${name}`, async () => {
      const path = await sqfstar(items, ...options)
      const { image } = await openPath(path)
      const entries = await entriesOf(image)
      const paths = entries.map((entry) => entry.path)
      expect(paths).toEqual(['', ...items.map((item) => item.path).sort(compareUtf8)])

      const byPath = new Map(entries.map((entry) => [entry.path, entry]))
      for (const item of items) {
        const entry = byPath.get(item.path)
        expect(entry, item.path).toBeDefined()
        if (entry === undefined) continue
        const source = item.type === 'link' ? items.find((other) => other.path === item.target) : item
        expect(
          {
            type: entry.type,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            target: entry.target,
            rdev: entry.rdev,
            xattrs: [...entry.xattrs].map(([key, value]) => [key, Buffer.from(value).toString()]),
          },
          item.path,
        ).toEqual({
          type: source?.type,
          mode: source?.mode ?? 0o644,
          uid: source?.uid ?? 0,
          gid: source?.gid ?? 0,
          mtime: source?.mtime ?? 0,
          size: source?.content?.length ?? 0,
          target: source?.target,
          rdev: source?.rdev,
          xattrs: Object.entries(source?.xattrs ?? {})
            .sort(([a], [b]) => compareUtf8(a, b))
            .map(([key, value]) => [key, Buffer.from(value).toString()]),
        })
        if (source?.type === 'file') {
          const content = await contentOf(image, entry)
          expect(content.equals(source.content ?? Buffer.alloc(0)), item.path).toBe(true)
        }
      }
      const hard = byPath.get('a/hard')
      expect(hard?.inode).toBe(byPath.get('a/plain')?.inode)
      expect(hard?.nlink).toBe(2)
      expect(byPath.get('a/same-content')?.inode).not.toBe(hard?.inode)
    })

  it('looks up single paths and lists names', async () => {
    const { image } = await openPath(await sqfstar(items, '-comp', 'zstd'))
    expect((await image.lookup('/a/deep/er/link'))?.target).toBe('../../plain')
    expect((await image.lookup('a/deep/er/'))?.path).toBe('a/deep/er')
    expect((await image.lookup('/'))?.type).toBe('dir')
    expect(await image.lookup('/a/nothing')).toBeUndefined()
    expect(await image.lookup('/a/plain/under-a-file')).toBeUndefined()
    const deep = await image.lookup('a')
    expect(deep && (await image.names(deep))).toEqual(['deep', 'hard', 'plain', 'same-content'])
    const plain = await image.lookup('a/plain')
    expect(plain && (await image.names(plain))).toEqual([])
    const fifo = await image.lookup('fifo')
    expect(fifo && (await contentOf(image, fifo)).length).toBe(0)
    const foreign = { ...(await entriesOf(image))[0] } as Parameters<typeof image.read>[0]
    expect(() => image.read(foreign)).toThrow(TypeError)
  })

  it('reads a directory of 5,000 entries, with and without an index', async () => {
    const many = Array.from(
      { length: 5000 },
      (_, n): Item => ({
        path: `many/${n.toString().padStart(4, '0')}-${'x'.repeat(n % 200)}`,
        type: 'file',
        content: text(`${n}`),
      }),
    )
    const { image } = await openPath(
      await sqfstar([{ path: 'many', type: 'dir', mode: 0o755 }, ...many], '-comp', 'zstd'),
    )
    const found = (await entriesOf(image)).slice(2)
    expect(found.map((entry) => entry.path)).toEqual(many.map((item) => item.path).sort(compareUtf8))
    for (const n of [0, 1, 2499, 4999]) {
      const entry = await image.lookup(many[n]?.path ?? '')
      expect(entry && (await contentOf(image, entry)).toString()).toBe(`${n}`)
    }
  })

  it('names the stored blocks and the tables: cutting there cuts no block in two', async () => {
    const path = await sqfstar(items, '-comp', 'zstd', '-b', '16K')
    const { image } = await openPath(path)
    const cuts = await image.contentBoundaries()
    const { superblock } = image
    expect(cuts).toEqual([...new Set(cuts)].sort((a, b) => a - b))
    expect(cuts[0]).toBe(96)
    expect(cuts).toContain(superblock.inodeTable.start)
    expect(cuts).toContain(superblock.directoryTable.start)
    expect(cuts.every((at) => at < superblock.bytesUsed)).toBe(true)
    // Data blocks are zstd frames or bytes stored as they are; every compressed one starts with the magic number.
    const bytes = readFileSync(path)
    const data = cuts.filter((at) => at < superblock.inodeTable.start)
    const magic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])
    const frames: number[] = []
    for (
      let at = bytes.indexOf(magic, 96);
      at >= 0 && at < superblock.inodeTable.start;
      at = bytes.indexOf(magic, at + 1)
    )
      frames.push(at)
    expect(frames.length).toBeGreaterThan(0)
    expect(frames.filter((at) => !data.includes(at))).toEqual([])
    // The pieces between the cuts are all the data: 16 KiB of content at most each.
    const pieces = data.map((at, n) => (data[n + 1] ?? superblock.inodeTable.start) - at)
    expect(Math.max(...pieces)).toBeLessThanOrEqual(16_384)
  })
})

describe.skipIf(!ready)('SquashFS reader against mksquashfs and unsquashfs', () => {
  it('a sparse file over 4 GiB', async () => {
    const size = 4 * 1024 ** 3 + 12_345
    // Through a pipe: a sparse file on disk would fill the page cache.
    const pseudo = `sparse f 644 0 0 head -c ${size - 3} /dev/zero; printf end`
    const { image } = await openPath(mksquashfs(scratch(), '-comp', 'zstd', '-b', '1M', '-p', pseudo))
    const entry = await image.lookup('sparse')
    expect(entry?.size).toBe(size)
    let total = 0
    let last = Buffer.alloc(0)
    if (entry !== undefined)
      for await (const piece of image.read(entry)) {
        total += piece.length
        last = Buffer.from(piece.subarray(-4))
      }
    expect(total).toBe(size)
    expect(last.toString()).toBe('\0end')
  })

  it('lists what unsquashfs lists, and gives the content it gives', async () => {
    const path = mksquashfs(
      new URL('../../node_modules/valibot', import.meta.url).pathname,
      '-comp',
      'zstd',
      '-b',
      '32K',
    )
    const { image } = await openPath(path)
    const listed = tool('unsquashfs', '-q', '-UTC', '-llnumeric', path)
      .split('\n')
      .flatMap((line) => {
        const found = /^(\S)(\S{9}) (\d+)\/(\d+)\s+(\d+) (\S+) (\S+) squashfs-root(.*)$/.exec(line)
        return found === null ? [] : [found.slice(1).join(' ')]
      })
      .sort(compareUtf8)
    const ours = (await entriesOf(image)).map((e) => {
      const letter = { file: '-', dir: 'd', symlink: 'l', char: 'c', block: 'b', fifo: 'p', socket: 's' }[e.type]
      const time = new Date(e.mtime * 1000).toISOString()
      const bits = [...'rwxrwxrwx'].map((bit, n) => ((e.mode >> (8 - n)) & 1 ? bit : '-')).join('')
      return e.type !== 'file'
        ? `${letter}${e.path}`
        : `${letter} ${bits} ${e.uid} ${e.gid} ${e.size} ${time.slice(0, 10)} ${time.slice(11, 16)} /${e.path}`
    })
    const files = (lines: string[]) => lines.filter((line) => line.startsWith('-')).sort(compareUtf8)
    expect(files(listed).length).toBeGreaterThan(5)
    expect(files(ours)).toEqual(files(listed))
    expect(ours.length).toBe(listed.length)

    const folder = scratch()
    tool('unsquashfs', '-q', '-n', '-f', '-d', `${folder}/out`, path)
    for (const entry of await entriesOf(image))
      if (entry.type === 'file')
        expect(hash('sha256', await contentOf(image, entry)), entry.path).toBe(
          hash('sha256', readFileSync(`${folder}/out/${entry.path}`)),
        )
  })

  it('an empty folder', async () => {
    const { image } = await openPath(mksquashfs(scratch(), '-comp', 'zstd'))
    expect((await entriesOf(image)).map((entry) => entry.path)).toEqual([''])
    expect((await image.contentBoundaries()).length).toBeGreaterThan(1)
  })

  it('reads from several callers at once', async () => {
    const { image } = await openPath(await sqfstar(items, '-comp', 'zstd', '-b', '4K'))
    const files = (await entriesOf(image)).filter((entry) => entry.type === 'file')
    const digests = await Promise.all(files.map(async (entry) => hash('sha256', await contentOf(image, entry))))
    for (const [n, entry] of files.entries()) {
      const source = items.find((item) => item.path === (entry.path === 'a/hard' ? 'a/plain' : entry.path))
      expect(digests[n], entry.path).toBe(hash('sha256', source?.content ?? Buffer.alloc(0)))
    }
  })
})
