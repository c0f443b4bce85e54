import { spawnSync } from 'node:child_process'
import { cpSync, linkSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { initFunctions, STATE_FUNCTIONS } from '../helpers/init-functions.ts'
import { have, run } from '../helpers/run.ts'

/** What the initramfs makes from the image (an /etc, paths of /var, data places) has its extended attributes and hard links. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-seeded-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** In each of the three: a file with a second name, both with an attribute. */
const TREES = ['etc', 'var/lib/app', 'opt/data']
const MADE: Readonly<Record<string, string>> = {
  etc: 'data/etc/a',
  'var/lib/app': 'data/var/lib/app',
  'opt/data': 'data/bind/opt/data',
}

function image(name: string, cp: boolean): string {
  const root = join(dir, name)
  for (const folder of ['data/bistable/seeding', 'data/var', 'tmp', 'bin'])
    mkdirSync(join(root, folder), { recursive: true })
  for (const tree of TREES) {
    mkdirSync(join(root, tree), { recursive: true })
    writeFileSync(join(root, tree, 'file'), 'of the image\n', { mode: 0o640 })
    linkSync(join(root, tree, 'file'), join(root, tree, 'second'))
    run('setfattr', ['-n', 'user.kept', '-v', 'yes', join(root, tree, 'file')])
  }
  const programs = cp ? ['/bin/cp', ...(run('ldd', ['/bin/cp']).match(/\/\S+/g) ?? [])] : []
  for (const path of programs) {
    mkdirSync(join(root, dirname(path)), { recursive: true })
    cpSync(path, join(root, path), { dereference: true })
  }
  return root
}

/** The first start of a device. */
function start(root: string): string {
  const at = (path: string) => join(root, path)
  writeFileSync(at('mounts'), 'data /opt/data\n')
  writeFileSync(at('owned'), '')
  const names = ['prepare_etc', 'carry_owned', 'prepare_var', 'prepare_var_mounts', 'find_new_var', 'list_var']
  const functions = initFunctions(
    [...names, 'make_etc', 'clear_away', 'renew_var', 'seed_var', 'stage_data', 'bind_data'],
    {
      // First: the other paths may be below it.
      '/tmp/': at('tmp/'),
      '/etc/bistable-mounts': at('mounts'),
      '/etc/bistable-owned': at('owned'),
      '/etc/bistable-etc-transient': at('transient'),
      '/image': root,
    },
  )
  const script = `ROOT='${root}' DATA='${at('data')}' TMP='${at('tmp')}' LONG=900 slot=a other=b boot=committed
release=1.1 roothash=${'f'.repeat(64)} filesystem=ext4 STATE=$DATA SEEDING=$DATA/bistable/seeding VAR_LIST=$DATA/bistable/var-seeded
. '${STATE_FUNCTIONS}'
say() { echo "$*"; }
enter() { :; }
mount() { :; }
fail() { echo "fail: $1"; exit 9; }
${functions}
prepare_etc; prepare_var; stage_data || exit 7; bind_data /opt/data || exit 8`
  // chroot takes a user of its own where nobody is root.
  const own = process.getuid?.() === 0 ? [] : ['unshare', '-r']
  const done = spawnSync('env', [...own, 'busybox', 'sh', '-c', script], { encoding: 'utf8', timeout: 60_000 })
  expect([done.status, done.stderr]).toEqual([0, ''])
  return done.stdout
}

/** Content, attribute, whether both names are one file. */
function found(root: string, tree: string) {
  const path = join(root, MADE[tree] ?? '')
  const said = run('getfattr', ['-d', '--absolute-names', join(path, 'file')])
  const [one, two] = ['file', 'second'].map((name) => statSync(join(path, name)))
  return [readFileSync(join(path, 'file'), 'utf8'), said.includes('user.kept="yes"'), one?.ino === two?.ino, one?.mode]
}

describe.skipIf(!have('busybox', 'getfattr', 'setfattr', 'ldd'))('made from the image', () => {
  test('has extended attributes and hard links, where the image has GNU cp', () => {
    const root = image('gnu', true)
    expect(start(root)).toBe('')
    for (const tree of TREES)
      expect([tree, ...found(root, tree)]).toEqual([tree, 'of the image\n', true, true, 0o100640])
  })

  test('without GNU cp all but the attributes is there', () => {
    const root = image('busybox', false)
    expect(start(root)).toBe('')
    for (const tree of TREES) expect(found(root, tree)).toEqual(['of the image\n', false, true, 0o100640])
  })

  test('a cp that cannot carry them does not keep a system from starting, and is told of', () => {
    const root = image('failing', false)
    cpSync('/bin/busybox', join(root, 'bin/busybox'))
    const cp =
      '#!/bin/busybox sh\n[ "$1" = --version ] && echo GNU coreutils && exit\necho no attributes here >&2\nexit 1\n'
    writeFileSync(join(root, 'bin/cp'), cp, { mode: 0o755 })
    expect(start(root)).toContain('note copied without extended attributes: no attributes here\n')
    for (const tree of TREES) expect(found(root, tree)).toEqual(['of the image\n', false, true, 0o100640])
  })
})
