import { execFileSync } from 'node:child_process'
import { hash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { MiB, type Sha256 } from '../../base/bytes.ts'
import { unpacker } from '../../bundle/squashfs/codec.ts'
import { readInode } from '../../bundle/squashfs/inode.ts'
import { Cursor, IndexedTable, Metadata } from '../../bundle/squashfs/metadata.ts'
import { createPool } from '../../bundle/squashfs/pool.ts'
import { Window } from '../../bundle/squashfs/reader.ts'
import { comparing } from '../../publisher/compare.ts'
import { mergeImage } from '../../publisher/oci/merge.ts'
import { openImage } from '../../publisher/oci/open.ts'
import { workerFailed } from '../../publisher/squashfs/errors.ts'
import { fileInode } from '../../publisher/squashfs/inodes.ts'
import { type SquashfsOptions, writeSquashfs } from '../../publisher/squashfs/write.ts'
import type { MergedTree } from '../../publisher/tree.ts'
import { noise } from '../bundle/tools.ts'
import { contentOf, env, haveTools, type Item, openPath, scratch, tool } from './build.ts'
import { differences, haveGetfattr, mounted, noKernelMount, treeOf } from './trees.ts'

const text = (s: string) => Buffer.from(s)
const CAPABILITY = Buffer.from('0100000200040000000000000000000000000000', 'hex')
const LABEL = text('system_u:object_r:etc_t:s0\0')
const defaults: SquashfsOptions = { blockSize: 131_072, level: 15, time: 1_700_000_000 }

/** One of everything; sizes stand around the borders of small and of large blocks. */
const sizes = [0, 1, 4095, 4096, 4097, 12_288, 131_071, 131_072, 131_073, 300_000, 1_048_576, 1_048_577]
const items: readonly Item[] = [
  { path: 'a', type: 'dir', mode: 0o755, uid: 1, gid: 2, mtime: 1_000_000_000 },
  { path: 'a/plain', type: 'file', content: text('plain\n'), mode: 0o4755, uid: 1000, gid: 70_000, mtime: 0xffffffff },
  { path: 'a/hard', type: 'link', target: 'a/plain' },
  { path: 'z/hard', type: 'link', target: 'a/plain' },
  { path: 'z', type: 'dir', mode: 0o2750 },
  { path: 'a/same-content', type: 'file', content: text('plain\n') },
  { path: 'a-b', type: 'file', content: text('stands between a and a/ in byte order') },
  { path: 'a/deep', type: 'dir', mode: 0o1777 },
  { path: 'a/deep/er', type: 'dir', mode: 0o700 },
  { path: 'a/deep/er/link', type: 'symlink', target: '../../plain' },
  { path: 'a/deep/er/link-hard', type: 'link', target: 'a/deep/er/link' },
  { path: 'a/deep/far', type: 'symlink', target: `/${'far/'.repeat(1000)}away` },
  { path: 'a0', type: 'dir', mode: 0o755 },
  { path: 'char', type: 'char', rdev: [10, 130], mode: 0o600 },
  { path: 'block', type: 'block', rdev: [4095, 1_048_575], mode: 0o660, uid: 0xfffffffe, gid: 6 },
  { path: 'block-hard', type: 'link', target: 'block' },
  { path: 'fifo', type: 'fifo', mode: 0o600 },
  { path: 'n'.repeat(255), type: 'file', content: text('long name') },
  { path: 'grüße 漢字 \u{1f600}', type: 'file', content: text('utf-8') },
  { path: 'zeros', type: 'file', content: Buffer.alloc(1_500_000) },
  { path: 'few-zeros', type: 'file', content: Buffer.alloc(70) },
  { path: 'holes', type: 'file', content: Buffer.concat([noise(5000), Buffer.alloc(2_600_000), noise(70)]) },
  { path: 'hole-first', type: 'file', content: Buffer.concat([Buffer.alloc(1_200_000), noise(70_000)]) },
  { path: 'cap', type: 'file', content: text('x'), mode: 0o755, xattrs: { 'security.capability': CAPABILITY } },
  { path: 'marked', type: 'dir', mode: 0o755, xattrs: { 'user.b': text('2'), 'user.a': text('1') } },
  { path: 'marked/same', type: 'file', xattrs: { 'user.b': text('2'), 'user.a': text('1') } },
  { path: 'marked/long', type: 'file', xattrs: { 'user.long': Buffer.alloc(3000, 'v') } },
  { path: 'marked/long2', type: 'file', xattrs: { 'user.long': Buffer.alloc(3000, 'v'), 'user.x': text('y') } },
  { path: 'marked/binary', type: 'file', xattrs: { 'user.binary': noise(300), 'user.empty': text('') } },
  ...['link', 'fifo', 'dev'].map((name): Item => {
    const shared = {
      path: `marked/${name}`,
      mode: 0o644,
      xattrs: { 'security.selinux': LABEL, 'trusted.t': text('1') },
    }
    if (name === 'link') return { ...shared, type: 'symlink', target: 'x' }
    return name === 'fifo' ? { ...shared, type: 'fifo' } : { ...shared, type: 'char', rdev: [1, 3] }
  }),
  ...sizes.map((size): Item => ({ path: `size-${size}`, type: 'file', content: noise(size, `size ${size}`) })),
]
const root = { mode: 0o750, uid: 3, gid: 4, mtime: 1_600_000_000, xattrs: { 'user.root': text('r') } } as const
const everything = treeOf(items, root)

const exportable = { fragments: false, exportable: true, blockSize: 16_384, level: 3 }
const variants: readonly (readonly [name: string, options: Partial<SquashfsOptions>])[] = [
  ['as build makes it', {}],
  ['4 KiB blocks, level 1', { blockSize: 4096, level: 1 }],
  ['1 MiB blocks, level 22', { blockSize: MiB, level: 22 }],
  ['no fragments, exportable', exportable],
]

const images = mkdtempSync(join(tmpdir(), 'bistable-squashfs-'))
afterAll(() => rmSync(images, { recursive: true }))
const made = new Map<string, Promise<string>>()

/** The image of `everything` in a variant, written once. */
function imageOf(name: string, options: Partial<SquashfsOptions>): Promise<string> {
  const known = made.get(name)
  if (known !== undefined) return known
  const path = join(images, name)
  const image = writeSquashfs(everything, path, { ...defaults, ...options }).then(() => path)
  made.set(name, image)
  return image
}

async function write(tree: MergedTree, options: Partial<SquashfsOptions> = {}): Promise<string> {
  const path = join(scratch(), 'image.sqfs')
  await writeSquashfs(tree, path, { ...defaults, ...options })
  return path
}

/** Fails with the first path that our own reader finds different. */
async function readBack(tree: MergedTree, path: string): Promise<number> {
  let count = 0
  for await (const _ of comparing(tree, (await openPath(path)).image).walk()) count++
  return count
}

const noKernel = noKernelMount()
const whole = { owners: true, times: true, links: true, xattrs: true }

describe('SquashFS writer', () => {
  for (const [name, options] of variants) {
    it(`our reader finds the tree: ${name}`, async () => {
      const path = await imageOf(name, options)
      expect(await readBack(everything, path)).toBe(items.length + 1)
      const { image, file } = await openPath(path)
      expect(image.level).toBe(options.level ?? 15)
      expect(image.superblock).toMatchObject({ made: defaults.time, blockSize: options.blockSize ?? 131_072 })
      expect(image.superblock.exportTable !== undefined).toBe(options.exportable === true)
      expect(file.size % 4096).toBe(0)
    })

    it.skipIf(noKernel !== undefined || !haveGetfattr())(`the kernel finds the tree: ${name}`, async () => {
      await mounted(await imageOf(name, options), 'kernel', (folder) =>
        expect(differences(everything, folder, whole)).toEqual([]),
      )
    })

    it.skipIf(!haveTools('unsquashfs'))(`unsquashfs finds the tree: ${name}`, async () => {
      const folder = join(scratch(), 'out')
      const isRoot = process.getuid?.() === 0
      // An ordinary user can make neither devices nor other owners' files.
      const tree = isRoot ? everything : treeOf(items.filter(({ path }) => !/^(block|char|marked|cap)/.test(path)))
      const image = isRoot ? await imageOf(name, options) : await write(tree, options)
      tool('unsquashfs', '-q', '-n', '-no-xattrs', '-d', folder, image)
      const wanted = { owners: isRoot, times: true, links: true, xattrs: false }
      expect(differences(tree, folder, wanted)).toEqual([])
    })

    it.skipIf(!haveTools('sqfs2tar'))(`sqfs2tar finds the tree: ${name}`, async () => {
      const tar = join(scratch(), 'image.tar')
      // A tar can link to regular files only.
      const tree = treeOf(
        items.filter(({ path }) => !/(link|block)-hard$/.test(path)),
        root,
      )
      execFileSync(
        'sh',
        ['-c', `sqfs2tar --root-becomes . "$1" > "$2"`, 'sh', await write(tree, { ...options, level: 1 }), tar],
        {
          env,
          stdio: ['ignore', 'pipe', 'pipe'],
        },
      )
      const input = await openImage(`rootfs:${tar}`)
      const again = await mergeImage(input, scratch(), { devices: 'keep', clampTime: 0xffffffff })
      try {
        expect(describeTree(again)).toEqual(describeTree(tree))
      } finally {
        again.close()
        await input.close()
      }
    })
  }

  it.skipIf(noKernel !== undefined || !haveTools('squashfuse') || !existsSync('/dev/fuse'))(
    'squashfuse finds the tree',
    async () => {
      await mounted(await imageOf('as build makes it', {}), 'squashfuse', (folder) =>
        // It takes no notice of the numbers of links of directories.
        expect(differences(everything, folder, { ...whole, links: false, xattrs: false })).toEqual([]),
      )
    },
  )

  it('any tree: our reader finds it, and so does the kernel', async () => {
    await fc.assert(
      fc.asyncProperty(anyTree, fc.constantFrom(4096, 8192, 131_072), fc.boolean(), async (tree, blockSize, flag) => {
        const path = await write(tree, { blockSize, level: 1, fragments: flag, exportable: !flag })
        expect(await readBack(tree, path)).toBeGreaterThan(0)
        if (noKernel === undefined)
          await mounted(path, 'kernel', (folder) =>
            expect(differences(tree, folder, { ...whole, xattrs: false })).toEqual([]),
          )
      }),
      { numRuns: 25 },
    )
  })

  it('gives the same bytes on any number of threads', async () => {
    const tree = treeOf(
      Array.from({ length: 20 }, (_, n) => ({
        path: `f${n}`,
        type: 'file' as const,
        content: Buffer.concat([noise(60_000 + n * 3000, `${n}`), Buffer.alloc(200_000, `text ${n} `)]),
      })),
    )
    const digests = new Set<string>()
    for (const processors of [1, 2, 5])
      digests.add(hash('sha256', readFileSync(await write(tree, { processors, level: 3, blockSize: 32_768 }))))
    expect([...digests]).toHaveLength(1)
  })

  it('stores equal contents once, and equal sets of attributes once', async () => {
    const once = await write(treeOf([{ path: 'a', type: 'file', content: noise(300_000) }]))
    const often = Array.from({ length: 20 }, (_, n) => ({
      path: `f${n}`,
      type: 'file' as const,
      content: noise(300_000),
      xattrs: { 'security.selinux': LABEL, 'user.v': Buffer.alloc(2000, `${n % 2}`) },
    }))
    expect(lstatSync(await write(treeOf(often))).size).toBeLessThan(lstatSync(once).size + 4097)
  })

  it('tells sets of attributes apart whose bytes in a row are the same', async () => {
    const sets = [{ 'user.a': 'x,0 b y' }, { 'user.a': 'x', 'user.b': 'y' }, { 'user.ax': 'y' }, { 'user.a': 'xy' }]
    const tree = treeOf(
      sets.map((set, n) => ({
        path: `f${n}`,
        type: 'file',
        xattrs: Object.fromEntries(Object.entries(set).map(([name, value]) => [name, text(value)])),
      })),
    )
    expect(await readBack(tree, await write(tree))).toBe(sets.length + 1)
  })

  it('lists every inode by number in the export table', async () => {
    const { image, file } = await openPath(await imageOf('no fragments, exportable', exportable))
    const { inodeTable, bytesUsed, exportTable = 0, inodes } = image.superblock
    const metadata = new Metadata(new Window(file, { start: inodeTable.start, end: bytesUsed }), unpacker('zstd'))
    const table = new IndexedTable(metadata, { index: exportTable, count: inodes }, 8, 'export')
    for (let number = 1; number <= inodes; number++) {
      const reference = (await table.entry(number - 1)).readBigUInt64LE()
      const place = { block: inodeTable.start + Number(reference >> 16n), offset: Number(reference & 0xffffn) }
      expect((await readInode(new Cursor(metadata, inodeTable, place), inodes)).number).toBe(number)
    }
  })

  it('a file over 4 GiB, mostly holes', async () => {
    const size = 4 * 1024 * MiB + 3 * MiB + 17
    const end = text('the end of a large file')
    const tree = treeOf([
      { path: 'large', type: 'file', content: end },
      { path: 'small', type: 'file', content: noise(9) },
    ])
    const large = tree.get('large')?.node
    if (large?.type !== 'file') throw new Error('no file')
    Object.assign(large, { size })
    const zeros = Buffer.alloc(MiB)
    const sparse: MergedTree = {
      ...tree,
      content: async function* (node) {
        if (node !== large) return yield* tree.content(node)
        for (let left = size - end.length; left > 0; left -= MiB) yield zeros.subarray(0, Math.min(MiB, left))
        yield end
      },
    }
    const path = await write(sparse, { blockSize: MiB })
    expect(lstatSync(path).size).toBe(4096)
    const { image } = await openPath(path)
    expect((await image.lookup('large'))?.size).toBe(size)
    const small = await image.lookup('small')
    expect(small && (await contentOf(image, small))).toEqual(noise(9))
    if (noKernel === undefined)
      await mounted(path, 'kernel', (folder) => {
        expect(lstatSync(join(folder, 'large'))).toMatchObject({ size, blocks: (MiB + 17 + 511) >> 9 })
        const fd = openSync(join(folder, 'large'), 'r')
        const last = Buffer.alloc(end.length + 1)
        expect(readSync(fd, last, 0, last.length, size - last.length)).toBe(last.length)
        closeSync(fd)
        expect(last).toEqual(Buffer.concat([Buffer.alloc(1), end]))
      })
  })

  it('a content that stands behind the first 4 GiB of the image, and one that is longer', async () => {
    const node = { type: 'file', size: 0, mode: 0o644, uid: 0, gid: 0, mtime: 5, xattrs: new Map() } as const
    const head = { path: 'f', number: 3, nlink: 1, uidIndex: 0, gidIndex: 1, xattr: 0xffffffff }
    for (const [start, size] of [
      [2 ** 32 - 1, 2 ** 32 - 1],
      [2 ** 32, 5000],
      [96, 2 ** 32],
      [2 ** 40 + 7, 2 ** 39],
    ] as const) {
      const stored = { start, words: Uint32Array.of(7, 8), sparse: 0, fragment: { index: 4, offset: 9 } }
      const bytes = fileInode({ ...head, node: { ...node, content: hash('sha256', '') as Sha256 } }, size, stored)
      let at = 0
      const take = async (length: number) => {
        at += length
        return bytes.subarray(at - length, at)
      }
      const read = await readInode({ take, position: { block: 0, offset: 0 } } as unknown as Cursor, 3)
      expect(read).toMatchObject({ number: 3, nlink: 1, mtime: 5, file: { start, size, fragment: stored.fragment } })
      expect(bytes.length - at).toBe(8)
    }
  })

  it('a directory of 100,000 entries, found by name through its index', async () => {
    const name = (n: number) => `many/${n.toString(36).padStart(5, '0')}${'.'.repeat(n % 90)}`
    const many = Array.from({ length: 100_000 }, (_, n): Item => ({ path: name(n), type: 'fifo' }))
    const tree = treeOf([{ path: 'many', type: 'dir', mode: 0o755 }, ...many])
    const path = await write(tree, { level: 1 })
    const { image } = await openPath(path)
    const folder = await image.lookup('many')
    expect(folder && (await image.names(folder))).toEqual(many.map((item) => item.path.slice(5)))
    for (const n of [0, 50_000, 99_999]) expect((await image.lookup(name(n)))?.type).toBe('fifo')
    if (noKernel === undefined)
      await mounted(path, 'kernel', (folder) => {
        expect(readdirSync(join(folder, 'many'))).toHaveLength(100_000)
        for (let n = 0; n < 100_000; n += 997) expect(lstatSync(join(folder, name(n))).isFIFO()).toBe(true)
        expect(existsSync(join(folder, 'many', '00000x'))).toBe(false)
      })
  })

  it('tables that end exactly at a block, and one entry behind it', async () => {
    const many = (n: number, item: (i: number) => Partial<Item>): Item[] =>
      Array.from({ length: n }, (_, i) => ({ path: `f${String(i).padStart(4, '0')}`, type: 'fifo', ...item(i) }))
    // Per block of 8192 bytes: 512 fragments, 2048 ids, 512 sets of attributes, 1024 inodes of the export table; a header
    // of a listing has 256 entries.
    const cases = [512, 513].flatMap((n) => [
      many(n, (i) => ({ type: 'file', content: noise(4095, `${i}`) })),
      many(n * 4 - 1 - (n % 2) * 3, (i) => ({ uid: i + 1 })),
      many(n, (i) => ({ type: 'file', xattrs: { 'user.a': text(`${i}`) } })),
      many(n - 256, () => ({})),
      many(n + 511, () => ({})),
    ])
    for (const items of cases) {
      const tree = treeOf(items)
      const path = await write(tree, { blockSize: 4096, level: 1, exportable: true })
      expect(await readBack(tree, path)).toBe(items.length + 1)
      if (noKernel === undefined)
        await mounted(path, 'kernel', (folder) =>
          expect(differences(tree, folder, { ...whole, xattrs: false })).toEqual([]),
        )
    }
  })

  it('65,535 ids are written, one more is refused: SQUASHFS_IDS', async () => {
    const owned = (count: number) =>
      treeOf(Array.from({ length: count }, (_, n): Item => ({ path: `f${n}`, type: 'fifo', uid: n, gid: n })))
    const tree = owned(65_535)
    const path = await write(tree, { level: 1 })
    const { image } = await openPath(path)
    for (const id of [0, 40_000, 65_534]) expect(await image.lookup(`f${id}`)).toMatchObject({ uid: id, gid: id })
    if (noKernel === undefined)
      await mounted(path, 'kernel', (folder) => {
        for (const id of [0, 1, 4096, 65_534])
          expect(lstatSync(join(folder, `f${id}`))).toMatchObject({ uid: id, gid: id })
      })
    await expect(write(owned(65_536))).rejects.toMatchObject({ code: 'SQUASHFS_IDS' })
  })

  it('refuses what SquashFS cannot hold, and leaves no file', async () => {
    const cases: readonly (readonly [code: string, item: Partial<Item>])[] = [
      ['SQUASHFS_ATTRIBUTE', { xattrs: { 'system.posix_acl_access': noise(20) } }],
      ['SQUASHFS_ATTRIBUTE', { xattrs: { 'user.': noise(20) } }],
      ['SQUASHFS_ATTRIBUTE', { xattrs: { [`user.${'n'.repeat(251)}`]: noise(20) } }],
      ['SQUASHFS_ATTRIBUTE', { xattrs: { 'user.v': noise(65_537) } }],
      ['SQUASHFS_ATTRIBUTE', { mtime: -1 }],
      ['SQUASHFS_ATTRIBUTE', { mtime: 2 ** 32 }],
      ['SQUASHFS_ATTRIBUTE', { uid: -1 }],
      ['SQUASHFS_ATTRIBUTE', { gid: 2 ** 32 }],
      ['SQUASHFS_ATTRIBUTE', { type: 'char', rdev: [4096, 0] }],
      ['SQUASHFS_ATTRIBUTE', { type: 'block', rdev: [0, 1_048_576] }],
      ['SQUASHFS_ATTRIBUTE', { type: 'symlink', target: '' }],
      ['SQUASHFS_ATTRIBUTE', { type: 'symlink', target: 't'.repeat(4096) }],
      ['SQUASHFS_LIMIT', { path: 'n'.repeat(256) }],
    ]
    for (const [code, item] of cases) {
      const path = join(scratch(), 'image.sqfs')
      const tree = treeOf([{ path: 'f', type: 'file', ...item }])
      await expect(writeSquashfs(tree, path, defaults), JSON.stringify(item).slice(0, 90)).rejects.toMatchObject({
        code,
      })
      expect(existsSync(path)).toBe(false)
    }
  })

  it('a content that is not as long as said: IMAGE_STORE_FAILED', async () => {
    for (const [said, size] of [
      [10, 9],
      [10, 11],
      [200_000, 131_072],
      [140_000, 200_000],
    ] as const) {
      const tree = treeOf([{ path: 'f', type: 'file', content: noise(said) }])
      const wrong: MergedTree = {
        ...tree,
        content: async function* () {
          yield noise(size)
        },
      }
      await expect(write(wrong), `${said} ${size}`).rejects.toMatchObject({ code: 'IMAGE_STORE_FAILED' })
    }
  })

  it('an output that cannot be written: SQUASHFS_WRITE', async () => {
    await expect(writeSquashfs(everything, join(scratch(), 'no', 'such'), defaults)).rejects.toMatchObject({
      code: 'SQUASHFS_WRITE',
    })
    // A device stays what it is, whoever fails on it with whatever rights.
    await expect(writeSquashfs(everything, '/dev/full', defaults)).rejects.toMatchObject({ code: 'SQUASHFS_WRITE' })
    expect(lstatSync('/dev/full').isCharacterDevice()).toBe(true)
  })

  it('a thread that fails: SQUASHFS_WORKER, for what is under way and for what comes', async () => {
    const pool = createPool(99, 2, workerFailed)
    const blocks = [1, 2, 3, 4, 5].map(() => pool.pack(new Uint8Array(10)))
    for (const { status, reason } of (await Promise.allSettled(blocks)) as PromiseRejectedResult[])
      expect([status, reason.code]).toEqual(['rejected', 'SQUASHFS_WORKER'])
    await expect(pool.pack(new Uint8Array(10))).rejects.toMatchObject({ code: 'SQUASHFS_WORKER' })
    await pool.close()
  })

  it('stops when told, and leaves no file', async () => {
    const path = join(scratch(), 'image.sqfs')
    const stop = new AbortController()
    const tree: MergedTree = {
      ...everything,
      content: (node) => {
        if (node.size > 100_000) stop.abort()
        return everything.content(node)
      },
    }
    await expect(writeSquashfs(tree, path, { ...defaults, signal: stop.signal })).rejects.toMatchObject({
      name: 'AbortError',
    })
    expect(existsSync(path)).toBe(false)
  })
})

/** Everything about a tree that a tar can say; trusted. attributes are not taken over from tars. */
function describeTree(tree: MergedTree): string[] {
  const links = new Map<number, string>()
  return [...tree.entries()].map(({ path, node, link }) => {
    if (link !== undefined && !links.has(link)) links.set(link, path)
    const xattrs = [...node.xattrs].flatMap(([name, value]) =>
      name.startsWith('trusted.') ? [] : [`${name}=${hash('sha1', value)}`],
    )
    return JSON.stringify([path, { ...node, xattrs }, link === undefined || node.type !== 'file' ? 0 : links.get(link)])
  })
}

/** Small trees: directories in directories, links across them, contents of all kinds. */
const anyTree = fc
  .array(
    fc.record({
      name: fc.constantFrom('a', 'b', 'a-', 'a0', 'B', 'é', 'x'.repeat(90), '.hidden', '\u{1f600}'),
      into: fc.nat(20),
      kind: fc.constantFrom('dir', 'dir', 'file', 'file', 'file', 'symlink', 'link', 'fifo', 'char'),
      size: fc.oneof(fc.nat(30), fc.nat(20_000), fc.constantFrom(4096, 8192, 8193, 131_072, 140_000)),
      seed: fc.nat(6),
      mode: fc.integer({ min: 0, max: 0o7777 }),
      id: fc.nat(70_000),
    }),
    { maxLength: 40 },
  )
  .map((specs) => {
    const made: Item[] = []
    const folders = ['']
    const taken = new Set<string>()
    for (const { name, into, kind, size, seed, mode, id } of specs) {
      const folder = folders[into % folders.length] ?? ''
      const path = folder === '' ? name : `${folder}/${name}`
      if (taken.has(path)) continue
      taken.add(path)
      const file = made.find(({ type }) => type === 'file')
      const common = { path, mode, uid: id, gid: seed, mtime: size }
      const content = seed === 0 ? Buffer.alloc(size) : seed < 3 ? Buffer.alloc(size, 'ab') : noise(size, `${seed}`)
      if (kind === 'link')
        made.push(file === undefined ? { ...common, type: 'file' } : { ...common, type: 'link', target: file.path })
      else if (kind === 'symlink') made.push({ ...common, type: 'symlink', target: `to/${seed}` })
      else if (kind === 'char') made.push({ ...common, type: 'char', rdev: [seed, size] })
      else if (kind === 'file') made.push({ ...common, type: 'file', content })
      else made.push({ ...common, type: kind === 'fifo' ? 'fifo' : 'dir' })
      if (kind === 'dir') folders.push(path)
    }
    return treeOf(made, { mode: 0o755 })
  })
