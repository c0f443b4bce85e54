import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { describe, expect, it, onTestFinished } from 'vitest'
import { haveTool } from './host.ts'
import { imageOf, scratch } from './images.ts'
import { dir, file, hardlink, type Member, symlink, tar } from './tars.ts'

// Watches the system calls of a merge: whatever a layer says, nothing is created by its names.

const root = resolve(import.meta.dirname, '../..')
const CREATING =
  'open,openat,openat2,creat,mkdir,mkdirat,symlink,symlinkat,link,linkat,mknod,mknodat,rename,renameat,renameat2,unlink,unlinkat,rmdir,chmod,fchmodat,chown,lchown,fchownat,truncate,setxattr,lsetxattr,utimensat'

const script = `
import { openImage } from '${root}/publisher/oci/open.ts'
import { mergeImage } from '${root}/publisher/oci/merge.ts'
import { cleanTar } from '${root}/publisher/tar/clean.ts'
const [work, ...refs] = process.argv.slice(2)
for (const ref of refs) {
  try {
    const input = await openImage(ref)
    const tree = await mergeImage(input, work)
    let bytes = 0
    for await (const piece of cleanTar(tree)) bytes += piece.length
    tree.close()
    await input.close()
    console.log('merged')
  } catch (error) {
    console.log(error.code)
  }
}
`

describe('host file system', () => {
  it.skipIf(!haveTool('strace'))(
    'B1 nothing is created outside the work folder, and nothing inside by a name from a layer',
    async () => {
      const folder = scratch()
      const work = join(folder, 'work')
      mkdirSync(work)
      writeFileSync(join(folder, 'main.ts'), script)
      const main = join(root, `node_modules/.cache/bistable-trace-${process.pid}.mjs`)
      onTestFinished(() => rmSync(main, { force: true }))
      await build({
        entryPoints: [join(folder, 'main.ts')],
        outfile: main,
        bundle: true,
        platform: 'node',
        format: 'esm',
        packages: 'external',
        logLevel: 'error',
      })
      const target = join(folder, 'outside')
      const layers: Member[][] = [
        [
          dir('d/'),
          file('d/f', 'x', { mode: 0o4755 }),
          symlink('s', target),
          hardlink('h', 'd/f'),
          dir('dev/'),
          { name: 'dev/null', type: '3', rdev: [1, 3] },
        ],
        [file(`../../..${target}`, 'x')],
        [file(target, 'x')],
        [symlink('.', '/tmp'), file('x', 'x')],
        [symlink('d', folder), file('d/outside', 'x')],
        [hardlink('h', '../../../etc/passwd')],
        [file('.wh..wh..opq'), file('.wh...')],
        [{ name: 'mem', type: '3', rdev: [1, 1] }],
      ]
      const refs = layers.map((members) => imageOf(tar(...members)))
      const trace = join(folder, 'trace')
      const result = spawnSync(
        'strace',
        [
          '-f',
          '-qq',
          '-y',
          '-s',
          '4096',
          '-e',
          `trace=${CREATING}`,
          '-o',
          trace,
          process.execPath,
          main,
          work,
          ...refs,
        ],
        {
          encoding: 'utf8',
        },
      )
      expect(result.stdout.trim().split('\n')).toEqual([
        'merged',
        'LAYER_PATH',
        'LAYER_PATH',
        'LAYER_PATH',
        'LAYER_PARENT',
        'LAYER_PATH',
        'LAYER_WHITEOUT',
        'LAYER_DEVICE',
      ])
      const changing = execFileSync('cat', [trace], { encoding: 'utf8', maxBuffer: 64 << 20 })
        .split('\n')
        .filter((line) => !/\b(?:open|openat|openat2)\(/.test(line) || /O_CREAT|O_WRONLY|O_RDWR|O_TRUNC/.test(line))
        .filter((line) => /^\d+ +\w+\(/.test(line) && !line.includes('"/dev/null"'))
        .map((line) => line.replace(/^\d+ +/, ''))
      const paths = new Set(changing.flatMap((line) => [...line.matchAll(/"([^"]*)"/g)].map((m) => m[1])))
      expect([...paths]).toEqual([join(work, 'contents.pack')])
      expect(changing.length).toBe(2 * refs.length)
      expect(readdirSync(work)).toEqual([])
    },
  )
})
