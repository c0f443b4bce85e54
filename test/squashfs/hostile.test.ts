import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compareUtf8 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { openSquashfs, type Squashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import {
  contentOf,
  entriesOf,
  haveTools,
  type Item,
  openBytes,
  openPath,
  scratch,
  sqfstar,
  tool,
  writeScratch,
} from './build.ts'

const ready = haveTools('sqfstar')

const text = (s: string) => Buffer.from(s)
const small: readonly Item[] = [
  { path: 'd', type: 'dir', mode: 0o755 },
  { path: 'd/e', type: 'dir', mode: 0o755, xattrs: { 'user.a': text('1') } },
  { path: 'd/e/file', type: 'file', content: noise(9000), xattrs: { 'user.long': text('v'.repeat(300)) } },
  { path: 'd/e/file2', type: 'file', content: noise(10), xattrs: { 'user.long': text('v'.repeat(300)) } },
  { path: 'd/hard', type: 'link', target: 'd/e/file' },
  { path: 'link', type: 'symlink', target: 'd/e/file', mode: 0o777 },
  { path: 'null', type: 'char', rdev: [1, 3] },
  { path: 'pipe', type: 'fifo' },
  { path: 'text', type: 'file', content: text('compressible '.repeat(2000)) },
]
const ROUNDS = Number(process.env['FUZZ_ROUNDS'] ?? 2000)
const STORED = ['-noI', '-noD', '-noF', '-noX'] as const

async function build(...options: string[]): Promise<Buffer> {
  return readFileSync(await sqfstar(small, '-b', '4K', ...options))
}

/** Reads all there is to read. */
async function readAll(bytes: Uint8Array): Promise<void> {
  const image = await openBytes(bytes)
  await drain(image)
}

async function drain(image: Squashfs): Promise<void> {
  for await (const entry of image.walk()) for await (const _ of image.read(entry));
  await image.contentBoundaries()
}

/** The refusal after `change` was made to a copy of the image. */
function codeAfter(image: Buffer, change: (copy: Buffer) => Buffer | unknown): Promise<string> {
  const copy = Buffer.from(image)
  const changed = change(copy)
  return codeOfAsync(() => readAll(Buffer.isBuffer(changed) ? changed : copy))
}

describe.skipIf(!ready)('SquashFS images that lie', () => {
  it('refuses what is not SquashFS 4.0', async () => {
    const image = await build()
    expect(await codeAfter(image, () => Buffer.from('<html>not found</html>'))).toBe('SQUASHFS_FORMAT')
    expect(await codeAfter(image, () => Buffer.alloc(0))).toBe('SQUASHFS_FORMAT')
    expect(await codeAfter(image, (b) => b.writeUInt8(0, 0))).toBe('SQUASHFS_FORMAT')
    expect(await codeAfter(image, (b) => b.writeUInt16LE(3, 28))).toBe('SQUASHFS_FORMAT')
    expect(await codeAfter(image, (b) => b.writeUInt16LE(1, 30))).toBe('SQUASHFS_FORMAT')
    expect(await codeOfAsync(() => openImageFile(scratch()))).toBe('SQUASHFS_FORMAT')
    const fifo = `${scratch()}/fifo`
    tool('mkfifo', fifo)
    expect(await codeOfAsync(() => openImageFile(fifo))).toBe('SQUASHFS_FORMAT')
  })

  it('refuses compressions it cannot read, by name', async () => {
    for (const name of ['xz', 'lzo', 'lz4']) {
      const path = await sqfstar(small, '-comp', name)
      expect(await codeOfAsync(() => openPath(path)), name).toBe('SQUASHFS_COMPRESSION')
    }
    expect(await codeAfter(await build(), (b) => b.writeUInt16LE(77, 20))).toBe('SQUASHFS_COMPRESSION')
  })

  it('refuses a superblock that contradicts itself', async () => {
    const image = await build('-comp', 'zstd')
    const changes: Record<string, (b: Buffer) => unknown> = {
      'no inodes': (b) => b.writeUInt32LE(0, 4),
      'fewer inodes than there are': (b) => b.writeUInt32LE(3, 4),
      'block size 0': (b) => b.writeUInt32LE(0, 12),
      'block size and logarithm differ': (b) => b.writeUInt16LE(13, 22),
      'block size 2 MiB': (b) => b.writeUInt16LE(21, b.writeUInt32LE(1 << 21, 12) && 22),
      'no ids': (b) => b.writeUInt16LE(0, 26),
      'root behind its table': (b) => b.writeUInt32LE(0x7fffffff, 34),
      'root in the middle of nothing': (b) => b.writeUInt16LE(8191, 32),
      'bytes used 0': (b) => b.writeBigUInt64LE(0n, 40),
      'id table missing': (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 48),
      'id table behind the end': (b) => b.writeBigUInt64LE(1n << 40n, 48),
      'id table over the superblock': (b) => b.writeBigUInt64LE(4n, 48),
      'xattr table behind the end': (b) => b.writeBigUInt64LE(2n ** 63n, 56),
      'xattr table missing': (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 56),
      'inode table over the superblock': (b) => b.writeBigUInt64LE(10n, 64),
      'inode table missing': (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 64),
      'directory table in front of the inodes': (b) => b.writeBigUInt64LE(100n, 72),
      'directory table missing': (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 72),
      'fragment table missing': (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 80),
      'fragment table at the end': (b) => b.writeBigUInt64LE(b.readBigUInt64LE(40), 80),
      'more fragments than there are': (b) => b.writeUInt32LE(0xffffffff, 16),
    }
    for (const [name, change] of Object.entries(changes))
      expect(await codeAfter(image, change), name).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, (b) => b.writeUInt32LE(0xffffffff, 4))).toBe('SQUASHFS_TOO_LARGE')
  })

  it('refuses an image cut anywhere', async () => {
    const image = await build('-comp', 'zstd', '-nopad')
    for (let length = 96; length < image.length; length += 13)
      expect(await codeAfter(image, (b) => b.subarray(0, length)), `${length} bytes`).toBe('SQUASHFS_TRUNCATED')
    // A file that shrinks after it was opened.
    const path = writeScratch('shrinks.sqfs', image)
    const { image: open } = await openPath(path)
    tool('truncate', '-s', '100', path)
    expect(await codeOfAsync(() => drain(open))).toBe('SOURCE_READ')
    expect(await codeOfAsync(() => openImageFile(`${path}.not-there`))).toBe('SOURCE_OPEN')
    // A source that gives less than it was asked for.
    const short = await openSquashfs(
      { read: async (at, length) => image.subarray(at, Math.min(at + length, at === 0 ? 96 : at + 1)) },
      image.length,
    )
      .then(drain)
      .catch((error: unknown) => error)
    expect(isBistableError(short, 'SQUASHFS_TRUNCATED')).toBe(true)
  })

  it('refuses a directory that contains itself', async () => {
    const image = await build(...STORED)
    // The listing of "d" has "e" and "hard": make its "e" refer to the inode of "d", as the root's listing does.
    const { directoryTable } = (await openBytes(image)).superblock
    const open = await openBytes(image)
    const d = await open.lookup('d')
    const e = await open.lookup('d/e')
    const entryAt = (name: string) => {
      for (let at = image.indexOf(name, directoryTable.start); ; at = image.indexOf(name, at + 1))
        if (image.readUInt16LE(at - 2) === name.length - 1) return at - 8
    }
    expect(d && e && e.inode !== d.inode).toBe(true)
    const code = await codeAfter(image, (b) => {
      b.copy(b, entryAt('e'), entryAt('d'), entryAt('d') + 2)
      b.writeInt16LE(b.readInt16LE(entryAt('e') + 2) + (d?.inode ?? 0) - (e?.inode ?? 0), entryAt('e') + 2)
    })
    expect(code).toBe('SQUASHFS_LOOP')
    // A file reached more often than its link count says.
    const links = await codeAfter(image, (b) => {
      b.copy(b, entryAt('pipe'), entryAt('null'), entryAt('null') + 6)
    })
    expect(links).toBe('SQUASHFS_LOOP')
  })

  it('refuses names that are not names, and names out of order', async () => {
    const image = await build(...STORED)
    const { directoryTable } = (await openBytes(image)).superblock
    const rename = (from: string, to: Buffer) => (b: Buffer) => to.copy(b, b.indexOf(from, directoryTable.start))
    expect(await codeAfter(image, rename('text', Buffer.from('te/t')))).toBe('SQUASHFS_NAME')
    expect(await codeAfter(image, rename('text', Buffer.from('te\0t')))).toBe('SQUASHFS_NAME')
    expect(await codeAfter(image, rename('text', Buffer.from([0x74, 0xff, 0xff, 0x74])))).toBe('SQUASHFS_NAME')
    expect(await codeAfter(image, rename('text', Buffer.from('pipe')))).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, rename('text', Buffer.from('null')))).toBe('SQUASHFS_CORRUPT')
    const dots = readFileSync(await sqfstar([{ path: 'ab', type: 'dir', mode: 0o755 }], ...STORED))
    const at = (await openBytes(dots)).superblock.directoryTable.start
    expect(await codeAfter(dots, (b) => Buffer.from('..').copy(b, b.indexOf('ab', at)))).toBe('SQUASHFS_NAME')
  })

  it('refuses a block that unpacks to more or to less than it should', async () => {
    const image = await build(...STORED)
    const { inodeTable } = (await openBytes(image)).superblock
    // The first data block's size word: 4096 with bit 24 set, in the block list of the only large file.
    const word = Buffer.from([0x00, 0x10, 0x00, 0x01])
    const at = image.indexOf(word, inodeTable.start)
    expect(at).toBeGreaterThan(0)
    expect(await codeAfter(image, (b) => b.writeUInt32LE(4095 | (1 << 24), at))).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, (b) => b.writeUInt32LE(4097 | (1 << 24), at))).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, (b) => b.writeUInt32LE(4096, at))).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, (b) => b.writeUInt32LE(4096 | (1 << 25), at))).toBe('SQUASHFS_CORRUPT')
    // Zero is a block of zeros, and shifts the rest: allowed by the format, so it must only be read safely.
    expect(['accepted', 'SQUASHFS_CORRUPT']).toContain(await codeAfter(image, (b) => b.writeUInt32LE(0, at)))
  })

  it('refuses a file that claims to be larger than is read', async () => {
    const image = await build(...STORED)
    const { inodeTable } = (await openBytes(image)).superblock
    // d/e/file has xattrs and links, so its inode is an extended one: type 9, size at byte 24.
    const at = image.indexOf(Buffer.from([9, 0, 0xa4, 1]), inodeTable.start)
    expect(image.readBigUInt64LE(at + 24)).toBe(9000n)
    expect(await codeAfter(image, (b) => b.writeBigUInt64LE(2n ** 41n, at + 24))).toBe('SQUASHFS_TOO_LARGE')
    expect(await codeAfter(image, (b) => b.writeBigUInt64LE(2n ** 60n, at + 24))).toBe('SQUASHFS_CORRUPT')
    expect(await codeAfter(image, (b) => b.writeBigUInt64LE(2n ** 40n, at + 24))).toBe('SQUASHFS_CORRUPT')
  })

  it('survives random damage: a typed refusal or a successful read, in bounded time and memory', async () => {
    const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31)
    console.log(`SquashFS fuzz: FUZZ_SEED=${seed}`)
    const random = generator(seed)
    const images = [await build('-comp', 'zstd'), await build('-comp', 'gzip'), await build(...STORED)]
    const outcomes = new Map<string, number>()
    const before = process.memoryUsage().rss
    for (let round = 0; round < ROUNDS; round++) {
      const image = images[round % images.length] ?? Buffer.alloc(0)
      const copy = Buffer.from(image)
      const { inodeTable, bytesUsed } = (await openBytes(image)).superblock
      for (let flips = 1 + (random() % 4); flips > 0; flips--) {
        // Most of the damage goes where the structures are: the superblock and the tables.
        const place = random() % 4
        const at =
          place === 0
            ? random() % 96
            : place === 1
              ? random() % bytesUsed
              : inodeTable.start + (random() % (bytesUsed - inodeTable.start))
        copy[at] = random() % 3 === 0 ? random() % 256 : (copy[at] ?? 0) ^ (1 << (random() % 8))
      }
      let outcome = 'read'
      try {
        await readAll(copy)
      } catch (error) {
        if (!isBistableError(error)) throw new Error(`seed ${seed}, round ${round}`, { cause: error })
        outcome = error.code
      }
      expect(outcome === 'read' || outcome.startsWith('SQUASHFS_'), `${outcome}, seed ${seed}, round ${round}`).toBe(
        true,
      )
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
    }
    expect(outcomes.get('SQUASHFS_CORRUPT') ?? 0).toBeGreaterThan(100)
    expect(outcomes.get('read') ?? 0).toBeGreaterThan(100)
    expect(process.memoryUsage().rss - before).toBeLessThan(400e6)
  })
})

/** xorshift32: the same numbers for the same seed. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state
  }
}

describe.skipIf(!ready)('SquashFS reader, random trees', () => {
  const name = fc.stringMatching(/^[a-c./ -]{1,4}$/).map((s) => s.replaceAll('/', '_').replace(/^\.+$/, 'dot'))
  const leaf = fc.record({
    size: fc.constantFrom(0, 1, 100, 4095, 4096, 4097, 20_000),
    kind: fc.constantFrom('file' as const, 'zeros' as const, 'symlink' as const, 'fifo' as const),
    mode: fc.integer({ min: 1, max: 0o7777 }),
    uid: fc.constantFrom(0, 1000, 65_534, 200_000),
  })
  const tree = fc.dictionary(
    fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/')),
    leaf,
    { maxKeys: 12, noNullPrototype: true },
  )
  const options = fc.constantFrom(
    ['-comp', 'zstd', '-b', '4K'],
    ['-comp', 'gzip', '-b', '8K'],
    ['-comp', 'zstd', '-no-fragments'],
  )

  it('reads back any small tree', async () => {
    await fc.assert(
      fc.asyncProperty(tree, options, async (leaves, how) => {
        const items = itemsOf(leaves)
        const { image } = await openPath(await sqfstar(items, ...how))
        const entries = (await entriesOf(image)).slice(1)
        expect(entries.map((e) => e.path)).toEqual(items.map((item) => item.path).sort(compareUtf8))
        for (const entry of entries) {
          const item = items.find((other) => other.path === entry.path)
          expect([entry.type, entry.mode, entry.uid, entry.target]).toEqual([
            item?.type,
            item?.mode,
            item?.uid,
            item?.target,
          ])
          if (entry.type === 'file')
            expect(item?.content && Buffer.compare(item.content, await contentOf(image, entry))).toBe(0)
        }
      }),
      { numRuns: 40 },
    )
  })
})

type Leaf = {
  readonly size: number
  readonly kind: 'file' | 'zeros' | 'symlink' | 'fifo'
  readonly mode: number
  readonly uid: number
}

/** Leaves with all their parents; a leaf whose path is also a parent becomes that parent. */
function itemsOf(leaves: Readonly<Record<string, Leaf>>): Item[] {
  const items = new Map<string, Item>()
  const parents = new Set(
    Object.keys(leaves).flatMap((path) =>
      path
        .split('/')
        .slice(0, -1)
        .map((_, n, parts) => parts.slice(0, n + 1).join('/')),
    ),
  )
  for (const path of parents) items.set(path, { path, type: 'dir', mode: 0o755, uid: 0 })
  for (const [path, { size, kind, mode, uid }] of Object.entries(leaves)) {
    if (items.has(path)) continue
    const shared = { path, mode, uid }
    if (kind === 'file') items.set(path, { ...shared, type: 'file', content: noise(size, path) })
    else if (kind === 'zeros') items.set(path, { ...shared, type: 'file', content: Buffer.alloc(size) })
    else if (kind === 'symlink') items.set(path, { ...shared, type: 'symlink', target: `${size}`, mode: 0o777 })
    else items.set(path, { ...shared, type: 'fifo' })
  }
  return [...items.values()].sort((a, b) => compareUtf8(a.path, b.path))
}
