import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import fc from 'fast-check'
import { describe, expect, it, onTestFinished } from 'vitest'
import { mergeImage } from '../../publisher/oci/merge.ts'
import { openImage } from '../../publisher/oci/open.ts'
import { imageOf, LayoutMaker, listing, merged, refusal, scratch } from './images.ts'
import { dir, file, hardlink, type Member, symlink, tar } from './tars.ts'

const base = tar(
  dir('a/', { mode: 0o700 }),
  file('a/1', 'one'),
  file('a/2', 'two'),
  dir('a/d/'),
  file('a/d/3', 'three'),
  file('b', 'bee'),
)

async function apply(...upper: readonly Member[]): Promise<string[]> {
  return (await listing(await merged(imageOf(base, tar(...upper))))).filter((line) => !line.endsWith(' .'))
}

describe('layers', () => {
  it('an upper layer adds and replaces', async () => {
    expect(await apply(file('a/1', 'new'), file('a/4', 'four'), symlink('b', 'a/1'))).toEqual([
      'dir 700 a',
      'file 644 a/1 new',
      'file 644 a/2 two',
      'file 644 a/4 four',
      'dir 755 a/d',
      'file 644 a/d/3 three',
      'symlink 777 b -> a/1',
    ])
  })

  it('a whiteout removes a file, or a directory with all in it; of nothing, nothing', async () => {
    expect(await apply(file('a/.wh.1'), file('a/.wh.d'), file('.wh.nothing'), file('no/.wh.where'))).toEqual([
      'dir 700 a',
      'file 644 a/2 two',
      'file 644 b bee',
    ])
  })

  it('an opaque mark hides what lies below and keeps its own layer, before or after it in the tar', async () => {
    const wanted = ['dir 700 a', 'file 644 a/5 five', 'file 644 b bee']
    expect(await apply(file('a/.wh..wh..opq'), file('a/5', 'five'))).toEqual(wanted)
    expect(await apply(file('a/5', 'five'), file('a/.wh..wh..opq'))).toEqual(wanted)
    expect(await apply(file('.wh..wh..opq'), file('c', 'x'))).toEqual(['file 644 c x'])
  })

  it('a whiteout reaches lower layers only', async () => {
    const wanted = [
      'dir 700 a',
      'file 644 a/1 again',
      'file 644 a/2 two',
      'dir 755 a/d',
      'file 644 a/d/3 three',
      'file 644 b bee',
    ]
    expect(await apply(file('a/.wh.1'), file('a/1', 'again'))).toEqual(wanted)
    expect(await apply(file('a/1', 'again'), file('a/.wh.1'))).toEqual(wanted)
    expect(await apply(dir('a/d/', { mode: 0o711 }), file('a/d/6', 'six'), file('a/.wh.d'))).toEqual([
      'dir 700 a',
      'file 644 a/1 one',
      'file 644 a/2 two',
      'dir 711 a/d',
      'file 644 a/d/6 six',
      'file 644 b bee',
    ])
  })

  it('a directory gives way to a file or link, with whiteouts below it as umoci writes them', async () => {
    expect(await apply(symlink('a', 'b'), file('a/.wh.1'), file('a/d/.wh.3'))).toEqual([
      'symlink 777 a -> b',
      'file 644 b bee',
    ])
    expect(await apply(file('a/.wh.1'), file('a', 'x'))).toEqual(['file 644 a x', 'file 644 b bee'])
    expect(await apply(dir('b/'), file('b/c', 'x'))).toContain('file 644 b/c x')
  })

  it('directories that no layer describes are root, 0755, and reported', async () => {
    const tree = await merged(imageOf(tar(file('x/y/z', 'z'))), { clampTime: 7 })
    expect(await listing(tree)).toEqual(['dir 755 .', 'dir 755 x', 'dir 755 x/y', 'file 644 x/y/z z'])
    expect(tree.get('x')?.node).toMatchObject({ uid: 0, gid: 0, mtime: 7 })
    expect(tree.findings.map((f) => `${f.kind} ${f.path}`)).toEqual(['implied-directory x', 'implied-directory x/y'])
  })

  it('replacing one of two hard links leaves the other', async () => {
    const lower = tar(file('a', 'same'), hardlink('b', 'a'), hardlink('c', 'a'))
    const tree = await merged(imageOf(lower, tar(file('b', 'other'))))
    expect(await listing(tree)).toEqual(['dir 755 .', 'file 644 a same #1', 'file 644 b other', 'file 644 c same #1'])
    const alone = await merged(imageOf(lower, tar(file('.wh.a'), file('.wh.b'))))
    expect(await listing(alone)).toEqual(['dir 755 .', 'file 644 c same'])
  })

  it('the order of entries in a layer does not matter', async () => {
    const upper = [
      file('a/.wh..wh..opq'),
      dir('a/', { mode: 0o711 }),
      file('a/d/x', 'x'),
      file('.wh.b'),
      symlink('b', 'a'),
      file('e', 'e'),
    ]
    const wanted = await apply(...upper)
    await fc.assert(
      fc.asyncProperty(fc.shuffledSubarray(upper, { minLength: upper.length }), async (shuffled) => {
        expect(await apply(...shuffled)).toEqual(wanted)
      }),
      { numRuns: 25 },
    )
  })

  it('entries come in byte order of their paths, parents first', async () => {
    const names = ['a-b', 'a/c', 'a', 'b', 'é', '\u{1f600}', '\uff5e']
    const tree = await merged(imageOf(tar(...names.map((n) => (n === 'a' ? dir('a/') : file(n))))))
    const paths = [...tree.entries()].map((e) => e.path)
    expect(paths).toEqual(['', 'a', 'a-b', 'a/c', 'b', 'é', '\uff5e', '\u{1f600}'])
    expect(tree.children('').map((e) => e.path)).toEqual(['a', 'a-b', 'b', 'é', '\uff5e', '\u{1f600}'])
    expect(tree.children('a').map((e) => e.path)).toEqual(['a/c'])
  })

  it('symbolic links are followed inside the tree only', async () => {
    const tree = await merged(
      imageOf(
        tar(
          dir('usr/'),
          dir('usr/lib/'),
          file('usr/lib/x', 'x'),
          symlink('lib', 'usr/lib'),
          symlink('up', '../../../usr'),
          symlink('abs', '/lib'),
          symlink('loop', 'loop'),
        ),
      ),
    )
    for (const path of ['lib/x', 'up/lib/x', 'abs/x', '/usr/../lib/./x'])
      expect(tree.resolve(path)?.path).toBe('usr/lib/x')
    for (const path of ['loop', 'lib/x/y', 'none']) expect(tree.resolve(path)).toBeUndefined()
  })
})

describe('times', () => {
  const image = (created?: string): string => {
    const maker = new LayoutMaker()
    const layer = tar(
      file('old', '', { mtime: 5 }),
      file('new', '', { mtime: 2_000_000_000 }),
      file('pax', '', { pax: { mtime: '7.9' } }),
      file('ancient', '', { pax: { mtime: '-3.5' } }),
    )
    return maker.write([maker.image({ layers: [{ bytes: layer }], ...(created === undefined ? {} : { created }) })])
  }
  const times = async (ref: string, clampTime?: number): Promise<unknown[]> => {
    const tree = await merged(ref, clampTime === undefined ? {} : { clampTime })
    return ['old', 'new', 'pax', 'ancient'].map((path) => tree.get(path)?.node.mtime)
  }
  it('are lowered to the time the image was created, or to the one given', async () => {
    expect(await times(image('2020-01-01T00:00:00.123456789Z'))).toEqual([5, 1_577_836_800, 7, 0])
    expect(await times(image('2020-01-01T00:00:00Z'), 6)).toEqual([5, 6, 6, 0])
    expect(await times(image())).toEqual([5, 2_000_000_000, 7, 0])
    expect(await times(image('0001-01-01T00:00:00Z'))).toEqual([5, 2_000_000_000, 7, 0])
  })
  it('a time without its zone is none: it would be another one on another machine', async () => {
    const zone = process.env['TZ']
    onTestFinished(() => {
      if (zone === undefined) delete process.env['TZ']
      else process.env['TZ'] = zone
    })
    for (const here of ['Asia/Tokyo', 'America/Los_Angeles']) {
      process.env['TZ'] = here
      for (const created of ['2020-01-01T00:00:00', 'Jan 1 2020', '2020-01-01 00:00'])
        expect(await times(image(created)), `${created} ${here}`).toEqual([5, 2_000_000_000, 7, 0])
      expect(await times(image('2020-01-01T09:00:00+09:00'))).toEqual([5, 1_577_836_800, 7, 0])
    }
  })
})

describe('content store', () => {
  it('that cannot be written to its end is taken away: IMAGE_STORE_FAILED', async () => {
    const folder = scratch()
    const root = resolve(import.meta.dirname, '../..')
    const main = join(root, `node_modules/.cache/bistable-full-${process.pid}.mjs`)
    onTestFinished(() => rmSync(main, { force: true }))
    writeFileSync(
      join(folder, 'main.ts'),
      `import { openImage } from '${root}/publisher/oci/open.ts'
       import { mergeImage } from '${root}/publisher/oci/merge.ts'
       const [work, ref] = process.argv.slice(2)
       await mergeImage(await openImage(ref), work).then(() => console.log('merged'), ({ code }) => console.log(code))`,
    )
    const common = { bundle: true, platform: 'node', format: 'esm', packages: 'external', logLevel: 'error' } as const
    await build({ entryPoints: [join(folder, 'main.ts')], outfile: main, ...common })
    const work = join(folder, 'work')
    mkdirSync(work)
    // 300 KiB are written in one piece, at the very end; files may have 32 KiB.
    const ref = imageOf(tar(file('a', Buffer.alloc(300 << 10, 'a'))))
    const command = 'ulimit -f 64; exec "$@"'
    const said = execFileSync('/bin/sh', ['-c', command, 'sh', process.execPath, main, work, ref], { encoding: 'utf8' })
    expect(said).toBe('IMAGE_STORE_FAILED\n')
    expect(readdirSync(work)).toEqual([])
  })
  it('keeps equal contents once, large ones too, and gives them back', async () => {
    const large = Buffer.alloc(3_000_000, 'abc')
    const other = Buffer.alloc(1_500_000, 'xyz')
    const work = scratch()
    const input = await openImage(
      imageOf(
        tar(
          file('a', large),
          file('b', large),
          file('c', other),
          file('d', large),
          file('e', 'tiny'),
          file('f', other),
        ),
      ),
    )
    const tree = await mergeImage(input, work)
    const size = readdirSync(work).reduce((sum, name) => sum + statSync(`${work}/${name}`).size, 0)
    // A repeated content may be overwritten only by what follows it: the file can end in one stale copy.
    expect(size).toBeLessThan(2 * large.length + other.length)
    for (const [path, bytes] of [
      ['a', large],
      ['b', large],
      ['c', other],
      ['d', large],
      ['f', other],
    ] as const) {
      const node = tree.get(path)?.node
      if (node?.type !== 'file') throw new Error(`${path} is missing`)
      expect(Buffer.compare(await tree.readSmall(node, 4_000_000), bytes)).toBe(0)
      await expect(tree.readSmall(node, bytes.length - 1)).rejects.toMatchObject({ code: 'IMAGE_FILE_TOO_LARGE' })
    }
    tree.close()
    expect(readdirSync(work)).toEqual([])
  })

  it('a repeated content takes nothing of its neighbours with it', async () => {
    const bodies = ['p', 'q', 'p', 'r', 'q', 's'].map((letter) => letter.repeat(100_000))
    const tree = await merged(imageOf(tar(...bodies.map((body, i) => file(`f${i}`, body)))))
    for (const [i, body] of bodies.entries()) expect(await listing(tree)).toContain(`file 644 f${i} ${body}`)
  })

  it('leaves nothing when the image is refused, and says so when the work folder is not usable', async () => {
    const work = scratch()
    await expect(mergeImage(await openImage(imageOf(tar(file('../x')))), work)).rejects.toMatchObject({
      code: 'LAYER_PATH',
    })
    expect(readdirSync(work)).toEqual([])
    await expect(mergeImage(await openImage(imageOf(base)), `${work}/none`)).rejects.toMatchObject({
      code: 'IMAGE_STORE_FAILED',
    })
  })

  it('stops when told', async () => {
    expect(await refusal(imageOf(base))).toBe('accepted')
    await expect(merged(imageOf(base), { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
  })
})
