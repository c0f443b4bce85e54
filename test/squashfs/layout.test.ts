import { hash } from 'node:crypto'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { endsFragment, layoutOrder } from '../../publisher/squashfs/layout.ts'
import { writeSquashfs } from '../../publisher/squashfs/write.ts'
import { noise } from '../bundle/tools.ts'
import { haveTools, type Item, mksquashfs, openPath, scratch } from './build.ts'
import { treeOf } from './trees.ts'

const options = { blockSize: 16_384, level: 1, time: 0 }

/** Files of one length: with blocks that are simply filled up, one more would shift all that follow for good. */
const files = (count: number): Item[] =>
  Array.from({ length: count }, (_, n) => ({
    path: `d/${String(n).padStart(4, '0')}`,
    type: 'file',
    content: noise(4000, `${n}`),
  }))
const folder: Item = { path: 'd', type: 'dir', mode: 0o755 }

/** Digests and lengths of the stored blocks of content. */
async function blocksOf(items: readonly Item[]): Promise<Map<string, number>> {
  const path = join(scratch(), 'image')
  await writeSquashfs(treeOf(items), path, options)
  const { image } = await openPath(path)
  const bytes = readFileSync(path)
  const cuts = (await image.contentBoundaries()).filter((at) => at <= image.superblock.inodeTable.start)
  return new Map(cuts.slice(1).map((end, n) => [hash('sha256', bytes.subarray(cuts[n], end)), end - (cuts[n] ?? 0)]))
}

async function newBytes(old: readonly Item[], now: readonly Item[]): Promise<number> {
  const [before, after] = [await blocksOf(old), await blocksOf(now)]
  return [...after].reduce((sum, [digest, length]) => sum + (before.has(digest) ? 0 : length), 0)
}

describe('SquashFS layout', () => {
  it('a small file that comes, goes, grows or changes disturbs a few fragment blocks', async () => {
    const all = files(400)
    const some = all.slice(200)
    const few = 12 * options.blockSize
    const added: Item = { path: 'd/0100-new', type: 'file', content: noise(3000, 'new') }
    expect(await newBytes([folder, ...all], [folder, ...all, added])).toBeLessThan(few)
    expect(await newBytes([folder, ...all], [folder, ...all.filter((_, n) => n !== 100)])).toBeLessThan(few)
    const changed = (content: Uint8Array) => all.map((item, n) => (n === 100 ? { ...item, content } : item))
    expect(await newBytes([folder, ...all], [folder, ...changed(noise(5000, 'grown'))])).toBeLessThan(few)
    expect(await newBytes([folder, ...all], [folder, ...changed(noise(4000, 'other'))])).toBeLessThan(few)
    // The measure can tell: what half of the files are is not few.
    expect(await newBytes([folder, ...some], [folder, ...all])).toBeGreaterThan(few)
  })

  it('newer times alone change no block of content', async () => {
    const all = [folder, ...files(40)]
    expect(
      await newBytes(
        all,
        all.map((item) => ({ ...item, mtime: 86_400 })),
      ),
    ).toBe(0)
  })

  it('ends a fragment block by path, from a quarter on, one path in eight', () => {
    const paths = Array.from({ length: 4000 }, (_, n) => `usr/share/${n}`)
    const ends = paths.filter((path) => endsFragment(32_768, 131_072, path))
    expect(ends.length).toBeGreaterThan(400)
    expect(ends.length).toBeLessThan(600)
    expect(paths.filter((path) => endsFragment(32_767, 131_072, path))).toEqual([])
    expect(paths.filter((path) => endsFragment(131_071, 131_072, path))).toEqual(ends)
  })

  it('takes contents by path, each once, and none that is empty', () => {
    const items: Item[] = [
      { path: 'b', type: 'file', content: noise(5) },
      { path: 'a', type: 'file', content: noise(6) },
      { path: 'c', type: 'file', content: noise(6) },
      { path: 'd', type: 'file' },
      { path: 'e', type: 'symlink', target: 'a' },
      { path: 'f', type: 'link', target: 'b' },
    ]
    expect(layoutOrder(treeOf(items)).map(({ path }) => path)).toEqual(['a', 'b'])
  })

  it.skipIf(!haveTools('mksquashfs'))('is at most 2 % larger than mksquashfs at the same settings', async () => {
    const from = new URL('../../node_modules/mqtt', import.meta.url).pathname
    const items = readdirSync(from, { recursive: true, encoding: 'utf8' }).map((path): Item => {
      const full = join(from, path)
      return statSync(full).isDirectory()
        ? { path, type: 'dir', mode: 0o755 }
        : { path, type: 'file', content: readFileSync(full) }
    })
    for (const [level, blockSize] of [
      [15, 131_072],
      [3, 32_768],
    ] as const) {
      const path = join(scratch(), 'image')
      await writeSquashfs(treeOf(items), path, { level, blockSize, time: 0 })
      const chosen = ['-comp', 'zstd', '-Xcompression-level', String(level), '-b', String(blockSize), '-no-exports']
      expect(statSync(path).size).toBeLessThan(statSync(mksquashfs(from, ...chosen)).size * 1.02)
    }
  })
})
