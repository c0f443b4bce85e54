import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { initFunctions, STATE_FUNCTIONS } from '../helpers/init-functions.ts'
import { have } from '../helpers/run.ts'
import { makeTree } from './trees.ts'

/**
 * The merge of /etc ends at one of its system calls, as with a power cut (what the kernel holds outlives this one); then the
 * initramfs starts the slot. Each time its /etc is whole, and that of the running slot is as it was.
 */

const dir = mkdtempSync(join(tmpdir(), 'bistable-etc-cuts-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const ready = have('strace', 'mksquashfs', 'busybox')
const root = resolve(import.meta.dirname, '../..')
const program = join(dir, 'once.mjs')
const template = join(dir, 'template')

beforeAll(async () => {
  if (!ready) return
  const old = { motd: 'one\n', 'app/conf': 'a\n', link: { to: 'motd' } }
  makeTree(join(template, 'old/etc'), old)
  makeTree(join(template, 'image/etc'), { ...old, motd: 'two\n', 'app/new': 'new\n', twin: { hardlink: 'motd' } })
  for (const name of ['old', 'image'])
    execFileSync('mksquashfs', [
      join(template, name),
      join(template, `${name}.squashfs`),
      '-comp',
      'zstd',
      '-quiet',
      '-no-progress',
    ])
  const local = { ...old, 'app/conf': 'mine\n', mine: 'mine\n' }
  makeTree(join(template, 'running'), local)
  makeTree(join(template, 'data/etc/a'), local)
  makeTree(join(template, 'data/etc/b'), { stale: 'of an older release\n', 'deep/er': '' })
  makeTree(join(template, 'data/etc/b.merging'), { half: '' })
  // The program that the bench times: one merge as an install does it.
  await build({
    ...{ absWorkingDir: root, entryPoints: ['bench/etc-once.ts'], outfile: program, bundle: true, logLevel: 'error' },
    ...{ platform: 'node', format: 'esm', target: 'node20.19', external: ['zstd-napi'] },
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  })
  execFileSync('ln', ['-s', join(root, 'node_modules'), join(dir, 'node_modules')])
})

/** Path to content or kind, of everything but the initramfs's own marks. */
function listing(folder: string): Record<string, string> {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => !/^\.bistable-/.test(name))
  const text = (name: string) =>
    statSync(join(folder, name)).isFile() ? readFileSync(join(folder, name), 'utf8') : 'folder'
  return Object.fromEntries(names.sort().map((name) => [name, text(name)]))
}

/** Merges, cut at this call of this kind. */
function merge(base: string, cut?: { readonly call: string; readonly n: number }): 'cut' | 'done' {
  rmSync(base, { recursive: true, force: true })
  cpSync(template, base, { recursive: true, verbatimSymlinks: true })
  const inject = cut && `inject=${cut.call}:signal=SIGKILL:when=${cut.n}`
  const tracer = inject === undefined ? [] : ['strace', '-f', '--seccomp-bpf', '-qqq', '-o', '/dev/null', '-e', inject]
  // One thread for its files: calls are counted by thread.
  const env = { ...process.env, UV_THREADPOOL_SIZE: '1' }
  const ran = spawnSync('env', [...tracer, process.execPath, program, base], { env, encoding: 'utf8' })
  if (ran.status === 0) return 'done'
  if (ran.signal !== 'SIGKILL' && ran.status !== 137) throw new Error(ran.stderr)
  return 'cut'
}

/** The start of slot b, tried for the first time: what the initramfs makes of its /etc. */
function start(base: string): Record<string, string> {
  const at = (path: string) => join(base, path)
  writeFileSync(at('owned'), '')
  const functions = initFunctions(['prepare_etc', 'make_etc', 'clear_away', 'carry_owned'], {
    '/etc/bistable-owned': at('owned'),
    '/etc/bistable-etc-transient': at('transient'),
  })
  const script = `DATA='${at('data')}' ROOT='${at('image')}' slot=b other=a boot=try LONG=900 release=1.2 roothash=${'f'.repeat(64)} TMP='${base}'
. '${STATE_FUNCTIONS}'
enter() { :; }
mount() { :; }
fail() { echo "$1" >&2; exit 9; }
${functions}
prepare_etc`
  execFileSync('busybox', ['sh', '-c', script])
  expect(readFileSync(at('data/etc/b/.bistable-release'), 'utf8')).toBe(`1.2 ${'f'.repeat(64)}\n`)
  return listing(at('data/etc/b'))
}

describe.skipIf(!ready)('a merge that is cut', () => {
  test('leaves the running /etc alone and a whole one behind', () => {
    const base = join(dir, 'device')
    expect(merge(base)).toBe('done')
    const merged = start(base)
    expect(merged).toMatchObject({ mine: 'mine\n', motd: 'two\n', twin: 'two\n', 'app/conf': 'mine\n' })
    const image = listing(join(template, 'image/etc'))
    const running = listing(join(template, 'data/etc/a'))
    const seen = new Set<string>()
    const calls = { mkdir: 2, symlink: 1, link: 1, fchmod: 1, rename: 4, unlink: 3, rmdir: 3 }
    for (const [call, most] of Object.entries(calls)) {
      for (let n = 1; n <= most; n++) {
        const how = merge(base, { call, n })
        const left = existsSync(join(base, 'data/etc/b')) ? 'there' : 'between'
        const after = start(base)
        const which = JSON.stringify(after) === JSON.stringify(merged) ? 'merged' : 'made from the image'
        if (which !== 'merged') expect([call, n, after]).toEqual([call, n, image])
        expect([call, n, listing(join(base, 'data/etc/a'))]).toEqual([call, n, running])
        seen.add(`${how} ${left} ${which}`)
        if (how === 'done') break
      }
    }
    // Before it is in place, between the two renames, and behind them.
    expect([...seen].sort()).toEqual(
      expect.arrayContaining(['cut between merged', 'cut there made from the image', 'cut there merged']),
    )
  }, 120_000)
})
