import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { fsverityDigest, fsverityOf, fsverityOfBytes } from '../../bundle/fsverity.ts'
import { BLOCK, createTreeHasher, type TreePage, treeLayout, treeSize } from '../../bundle/tree.ts'
import { haveTool, noise, run, scratch } from './tools.ts'

const P2 = 128 * 128
const sizes = [
  1,
  4095,
  BLOCK,
  BLOCK + 1,
  ...[127, 128, 129].map((n) => n * BLOCK),
  128 * BLOCK + 1,
  ...[P2 - 1, P2, P2 + 1].map((n) => n * BLOCK),
]
const big = noise((P2 + 1) * BLOCK)

function treeOf(bytes: Uint8Array) {
  const hasher = createTreeHasher()
  for (let at = 0; at < bytes.length; at += 1_000_003) hasher.update(bytes.subarray(at, at + 1_000_003))
  const done = hasher.finish()
  return { ...done, tree: Buffer.concat([...done.writeTree()]) }
}

describe.skipIf(!haveTool('veritysetup'))('equal to veritysetup', () => {
  // dm-verity only knows whole blocks; fs-verity covers the odd lengths.
  test.each(sizes.map((size) => Math.ceil(size / BLOCK) * BLOCK))('image of %i bytes: root and tree', (size) => {
    const dir = scratch()
    const image = join(dir, 'image')
    const area = join(dir, 'tree')
    writeFileSync(image, big.subarray(0, size))
    writeFileSync(area, '')
    const text = run('veritysetup', 'format', '--no-superblock', '--salt=-', image, area)
    const mine = treeOf(big.subarray(0, size))
    expect(text).toContain(`Root hash:      \t${mine.root}\n`)
    expect(mine.length).toBe(size)
    expect(mine.treeBytes).toBe(mine.tree.length)
    expect(mine.tree.length).toBe(treeSize(size))
    expect(mine.tree.equals(readFileSync(area))).toBe(true)
  })
})

describe.skipIf(!haveTool('fsverity'))('equal to fsverity digest', () => {
  test.each([0, ...sizes])('file of %i bytes', async (size) => {
    const file = join(scratch(), 'file')
    writeFileSync(file, big.subarray(0, size))
    const want = run('fsverity', 'digest', '--compact', file).trim()
    expect(fsverityOfBytes(big.subarray(0, size))).toBe(want)
    expect(await fsverityOf(createReadStream(file, { highWaterMark: 100_001 }))).toBe(want)
    if (size > 0) expect(fsverityDigest(treeOf(big.subarray(0, size)).root, size)).toBe(want)
  })
})

test('the root is the same however the stream is cut', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 140 * BLOCK }),
      fc.array(fc.integer({ min: 0, max: 40_000 }), { maxLength: 40 }),
      (length, cuts) => {
        const bytes = big.subarray(0, length)
        const hasher = createTreeHasher()
        let at = 0
        for (const cut of cuts) {
          hasher.update(bytes.subarray(at, at + cut))
          at = Math.min(length, at + cut)
        }
        hasher.update(bytes.subarray(at))
        const done = hasher.finish()
        const whole = treeOf(bytes)
        expect(done.root).toBe(whole.root)
        expect(Buffer.concat([...done.writeTree()]).equals(whole.tree)).toBe(true)
      },
    ),
    { numRuns: 40 },
  )
})

test('fs-verity of a stream is the same however it is cut, and when the stream reuses its buffer', async () => {
  for (const cut of [1, 7, 4095, BLOCK, BLOCK + 1]) {
    const bytes = big.subarray(0, 3 * BLOCK - 5)
    const shared = Buffer.alloc(cut)
    async function* pieces() {
      for (let at = 0; at < bytes.length; at += cut) {
        const n = bytes.copy(shared, 0, at, at + cut)
        yield shared.subarray(0, n)
      }
    }
    expect(await fsverityOf(pieces())).toBe(fsverityOfBytes(bytes))
  }
})

test('onPage gets every page of the tree once, each where treeLayout says', () => {
  const bytes = randomBytes(300 * BLOCK)
  const pages: TreePage[] = []
  const hasher = createTreeHasher({ onPage: (page) => pages.push(page) })
  hasher.update(bytes)
  const done = hasher.finish()
  const layout = new Map(treeLayout(bytes.length).map((level) => [level.level, level]))
  const tree = Buffer.alloc(done.treeBytes)
  for (const page of pages) tree.set(page.bytes, (layout.get(page.level)?.offset ?? Number.NaN) + page.index * BLOCK)
  expect(pages.length * BLOCK).toBe(tree.length)
  expect(tree.equals(treeOf(bytes).tree)).toBe(true)
  expect(() => [...done.writeTree()]).toThrow(RangeError)
})

test('layout: from the root level down, sizes as the blocks demand', () => {
  expect(treeLayout(BLOCK)).toEqual([])
  expect(treeSize(8 * 1024 ** 3)).toBe((16384 + 128 + 1) * BLOCK)
  expect(treeLayout(129 * BLOCK)).toEqual([
    { level: 1, offset: 0, pages: 1 },
    { level: 0, offset: BLOCK, pages: 2 },
  ])
})

test('a single block: the root is its hash; nothing at all has no root', () => {
  expect(treeOf(big.subarray(0, BLOCK)).root).toBe(createHash('sha256').update(big.subarray(0, BLOCK)).digest('hex'))
  expect(() => createTreeHasher().finish()).toThrow(RangeError)
})

test.skipIf(!haveTool('mksquashfs') || !haveTool('veritysetup') || !haveTool('fsverity'))(
  'a real image: SquashFS with zstd, the same root from all three',
  async () => {
    const dir = scratch()
    const image = join(dir, 'image.squashfs')
    const area = join(dir, 'tree')
    // The compiler's and the formatter's binaries: tens of MB that compress like a system does.
    const content = ['typescript', '@biomejs'].map((name) => join(import.meta.dirname, '../../node_modules', name))
    run('mksquashfs', ...content, image, '-comp', 'zstd', '-Xcompression-level', '3', '-quiet', '-no-progress')
    writeFileSync(area, '')
    const size = readFileSync(image).length
    expect(size % BLOCK).toBe(0)
    expect(size).toBeGreaterThan(4 * 1024 * 1024)
    const hasher = createTreeHasher()
    for await (const piece of createReadStream(image)) hasher.update(piece as Buffer)
    const { root } = hasher.finish()
    expect(run('veritysetup', 'format', '--no-superblock', '--salt=-', image, area)).toContain(
      `Root hash:      \t${root}\n`,
    )
    expect(fsverityDigest(root, size)).toBe(run('fsverity', 'digest', '--compact', image).trim())
  },
)
