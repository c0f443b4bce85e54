import { hash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { Budget, DEFAULT_LIMITS } from '../../publisher/oci/limits.ts'
import { cleanTar } from '../../publisher/tar/clean.ts'
import { ByteFeed } from '../../publisher/tar/feed.ts'
import { type TarEntry, TarReader } from '../../publisher/tar/reader.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../../publisher/tree.ts'
import { haveTool, run } from './host.ts'
import { imageOf, listing, merged, scratch } from './images.ts'
import { dir, file, hardlink, symlink, tar } from './tars.ts'

async function bytesOf(tree: MergedTree): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of cleanTar(tree)) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** Reads a tar given in pieces of `step` bytes. */
async function read(bytes: Uint8Array, step = 1000): Promise<{ entry: TarEntry; content: string }[]> {
  async function* pieces(): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step)
  }
  const reader = new TarReader(new ByteFeed(pieces()), new Budget(DEFAULT_LIMITS))
  const out: { entry: TarEntry; content: string }[] = []
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    let content = ''
    for (let piece = await reader.piece(); piece !== undefined; piece = await reader.piece())
      content += Buffer.from(piece).toString('latin1')
    out.push({ entry, content })
  }
  return out
}

const long = `deep/${'n'.repeat(150)}/${'m'.repeat(200)}`
const rich = tar(
  dir('./', { mode: 0o711 }),
  dir('b/', { mode: 0o1777 }),
  file('b/x', 'content', {
    mode: 0o4755,
    uid: 1000,
    pax: { 'SCHILY.xattr.user.b': 'two\n=\0', 'SCHILY.xattr.user.a': '' },
  }),
  hardlink('b/z', 'b/x'),
  hardlink('a', 'b/x'),
  symlink('link', 'b/x'),
  file('far', 'f', { pax: { uid: '3000000000', gid: '2097152' } }),
  file('l', 'long', { pax: { path: long } }),
  { name: 's', type: '2', pax: { linkpath: '../'.repeat(60) } },
  { name: 't', type: '2', pax: { linkpath: `/${'t'.repeat(120)}`, 'SCHILY.xattr.user.t': 't' } },
  file('ünïcode', 'ü'),
)

describe('cleanTar', () => {
  it('is sorted, links behind their first path, and stays what it is when merged again', async () => {
    const tree = await merged(imageOf(rich))
    const bytes = await bytesOf(tree)
    const again = await merged(imageOf(bytes))
    expect(await bytesOf(again)).toEqual(bytes)
    expect([...again.entries()]).toEqual([...tree.entries()])
    expect((await read(bytes)).map(({ entry }) => `${entry.type} ${entry.name} ${entry.link}`)).toEqual([
      'dir ./ ',
      'file a ',
      'dir b/ ',
      'hardlink b/x a',
      'hardlink b/z a',
      'dir deep/ ',
      `dir deep/${'n'.repeat(150)}/ `,
      `file ${long} `,
      'file far ',
      'symlink link b/x',
      `symlink s ${'../'.repeat(60)}`,
      `symlink t /${'t'.repeat(120)}`,
      'file ünïcode ',
    ])
  })

  it('does not depend on the order of the input', async () => {
    const members = [dir('a/'), file('a/x', '1'), file('b', '2'), symlink('c', 'b')]
    const one = await bytesOf(await merged(imageOf(tar(...members))))
    const other = await bytesOf(await merged(imageOf(tar(...members.toReversed()))))
    expect(other).toEqual(one)
  })

  it('large files: a size that needs PAX is written there', async () => {
    const size = 8 ** 11
    const node: TreeNode = {
      type: 'file',
      size,
      content: '0'.repeat(64) as Sha256,
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtime: 0,
      xattrs: new Map(),
    }
    const tree = await merged(imageOf(tar()))
    const fake: MergedTree = { ...tree, entries: () => [{ path: 'big', node }], content: async function* () {} }
    const pieces: Uint8Array[] = []
    const error: unknown = await (async () => {
      for await (const piece of cleanTar(fake)) pieces.push(piece)
    })().catch((e: unknown) => e)
    // The content is missing: the tar must not look complete.
    expect(error).toMatchObject({ code: 'IMAGE_STORE_FAILED' })
  })

  it('names that a layer could not have are refused', async () => {
    const tree = await merged(imageOf(tar(file('f'))))
    const node = tree.get('f')?.node
    if (node === undefined) throw new Error('no f')
    for (const [path, code] of [
      ['../x', 'LAYER_PATH'],
      ['x'.repeat(256), 'LAYER_NAME'],
    ] as const) {
      const entries: TreeEntry[] = [{ path, node }]
      await expect(bytesOf({ ...tree, entries: () => entries })).rejects.toMatchObject({ code })
    }
  })

  it.skipIf(!haveTool('sqfstar') || !haveTool('unsquashfs'))('sqfstar makes of it what was merged', async () => {
    const tree = await merged(imageOf(rich))
    const folder = scratch()
    const path = join(folder, 'clean.tar')
    writeFileSync(path, await bytesOf(tree))
    run('sh', '-c', `sqfstar -quiet -no-progress -reproducible '${folder}/image' < '${path}'`)
    const list = run('unsquashfs', '-lln', '-UTC', `${folder}/image`)
    expect(list).toContain(`squashfs-root/${long}`)
    expect(list).toMatch(/^-rwsr-xr-x 1000\/0 +7 .* squashfs-root\/b\/z$/m)
    expect(list).toMatch(/^-rw-r--r-- 3000000000\/2097152 +1 .* squashfs-root\/far$/m)
    expect(list).toContain(`squashfs-root/s -> ${'../'.repeat(60)}`)
    // sqfstar 4.5.1 would lose the slash of a target in a PAX header.
    expect(list).toContain(`squashfs-root/t -> /${'t'.repeat(120)}`)
    expect(run('unsquashfs', '-cat', `${folder}/image`, 'b/z')).toBe('content')
  })

  it('property: any tree survives', async () => {
    const name = fc
      .stringMatching(/^[a-zà-ÿ一-三\u{1f600}-\u{1f603} .\\"'$-]{1,40}$/u)
      .filter((n) => n !== '.' && n !== '..')
    const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'))
    const item = fc.record({
      path,
      body: fc.string({ maxLength: 700 }),
      mode: fc.nat(0o777),
      time: fc.nat(2 ** 32 - 1),
      link: fc.option(name),
    })
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(item, { selector: (i) => i.path.split('/')[0] ?? '', maxLength: 8 }),
        async (items) => {
          const layer = tar(
            ...items.map((i) => {
              const pax = { path: i.path, mtime: String(i.time), ...(i.link === null ? {} : { linkpath: i.link }) }
              return i.link === null ? file('f', i.body, { mode: i.mode, pax }) : { name: 'f', type: '2', pax }
            }),
          )
          const tree = await merged(imageOf(layer))
          const again = await merged(imageOf(await bytesOf(tree)))
          expect(await listing(again)).toEqual(await listing(tree))
          for (const i of items) {
            const node = tree.get(i.path)?.node
            expect(node?.mtime).toBe(i.time)
            if (i.link === null)
              expect(node).toMatchObject({ type: 'file', mode: i.mode, content: hash('sha256', i.body) })
            else expect(node).toMatchObject({ type: 'symlink', target: i.link })
          }
        },
      ),
      { numRuns: 40 },
    )
  })
})

describe('TarReader', () => {
  const script = `
import os, sys
os.makedirs('t/dir/' + 'n' * 120 + '/' + 'm' * 120)
open('t/dir/' + 'n' * 120 + '/' + 'm' * 120 + '/file', 'w').write('deep')
open('t/a', 'w').write('a' * 1000)
os.link('t/a', 't/hard')
os.symlink('x' * 150, 't/soft')
open('t/ünï', 'w').write('u')
for root, dirs, files in os.walk('t'):
    for n in dirs + files:
        os.utime(os.path.join(root, n), (1600000000, 1600000000), follow_symlinks=False)
`
  it.skipIf(!haveTool('python3'))(
    'reads GNU, POSIX and ustar tars by GNU tar and Python, in any pieces, as one tree',
    async () => {
      const folder = scratch()
      writeFileSync(join(folder, 'make.py'), script)
      run('sh', '-c', `cd '${folder}' && python3 make.py`)
      const make = (name: string, command: string): Buffer => {
        run('sh', '-c', `cd '${folder}' && ${command}`)
        return readFileSync(join(folder, name))
      }
      const python = (format: string): string =>
        `python3 -c "import tarfile; t = tarfile.open('${format}.tar', 'w', format=tarfile.${format}_FORMAT); t.add('t', '.'); t.close()"`
      const gnu = (format: string): string =>
        `tar --format=${format} --sort=name --owner=x:9999999 -cf ${format}.tar -C t .`
      const tars = [
        make('gnu.tar', gnu('gnu')),
        make('posix.tar', gnu('posix')),
        make('GNU.tar', python('GNU')),
        make('PAX.tar', python('PAX')),
      ]
      const trees = await Promise.all(tars.map((bytes) => merged(imageOf(bytes))))
      const lists = await Promise.all(
        trees.map(async (tree) => (await listing(tree)).filter((line) => !line.endsWith(' .'))),
      )
      expect(lists[0]?.length).toBe(8)
      for (const list of lists) expect(list).toEqual(lists[0])
      for (const tree of trees) expect(tree.get('a')?.node.mtime).toBe(1_600_000_000)
      expect(trees[0]?.get('a')?.node.uid).toBe(9_999_999)
      expect(trees[1]?.get('a')?.node.uid).toBe(9_999_999)
      const [first] = tars
      if (first === undefined) throw new Error('no tar')
      const whole = await read(first, first.length)
      for (const step of [1, 511, 512, 513]) expect(await read(first, step)).toEqual(whole)
    },
  )

  it('property: bytes from outside are refused by code, never otherwise', async () => {
    const bytes = tar(
      dir('d/'),
      file('d/f', 'body', { pax: { mtime: '1.5', 'SCHILY.xattr.user.x': 'y' } }),
      symlink('l', 'd'),
    )
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.nat(255), fc.nat(bytes.length), async (at, value, cut) => {
        const changed = Buffer.from(bytes)
        changed[at] = value
        const error: unknown = await read(changed.subarray(0, cut)).catch((e: unknown) => e)
        if (error instanceof Error) expect(error).toMatchObject({ code: expect.stringMatching(/^LAYER_/) })
      }),
      { numRuns: 400 },
    )
  })
})
