import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { initFunctions, STATE_FUNCTIONS } from '../helpers/init-functions.ts'
import { have } from '../helpers/run.ts'

/** Places of the data partition are made from the image: all of them copied aside, flushed once, each put in place by a rename. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-places-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const CUTTABLE = ['cp', 'mv', 'mkdir', 'rm', 'sync']
const PLACES = ['/opt/app', '/opt/app/logs', '/srv/ab', '/opt/none']

/** One start: stages and binds; the power goes at the program `cutAt`, counted from 1. */
function start(base: string, cutAt = 0): { cut: boolean; code: number | null; did: readonly string[] } {
  const at = (path: string) => join(base, path)
  writeFileSync(
    at('mounts'),
    PLACES.map((path) => `data ${path} \n`)
      .join('')
      .replaceAll(' \n', '\n'),
  )
  const functions = initFunctions(['stage_data', 'bind_data', 'clean_seeding'], {
    '/etc/bistable-mounts': at('mounts'),
    '"/image': `"${at('image')}`,
  })
  const programs = CUTTABLE.map(
    (name) => `${name}() {
      n=$((n + 1)); echo "${name}" >>'${at('did')}'
      [ $n != ${cutAt} ] || kill -9 $$
      busybox ${name} "$@"
    }`,
  )
  const script = [
    `n=0 DATA='${at('data')}' STATE='${at('data')}' SEEDING='${at('data/bistable/seeding')}' ROOT='${at('root')}'`,
    'mount() { :; }',
    ...programs,
    // Nothing to chroot into here: busybox's own cp.
    `TMP='${base}'; . '${STATE_FUNCTIONS}'`,
    functions,
    'stage_data || exit 7',
    ...PLACES.filter((path) => path !== '/opt/none').map((path) => `bind_data '${path}' || exit 8`),
    'clean_seeding',
  ].join('\n')
  rmSync(at('did'), { force: true })
  const { status, signal } = spawnSync('busybox', ['sh', '-c', script], { encoding: 'utf8', timeout: 60_000 })
  const did = existsSync(at('did')) ? readFileSync(at('did'), 'utf8').trim().split('\n') : []
  return { cut: signal === 'SIGKILL', code: status, did }
}

function device(name: string): string {
  const base = join(dir, name)
  const files = { 'opt/app/conf': 'as shipped', 'opt/app/logs/first': 'line', 'srv/ab/x': 'x' }
  for (const [path, text] of Object.entries(files)) {
    const full = join(base, 'image', path)
    mkdirSync(dirname(full), { recursive: true })
    writeFileSync(full, text)
  }
  mkdirSync(join(base, 'data/bistable/seeding'), { recursive: true })
  return base
}

const text = (base: string, path: string) => readFileSync(join(base, 'data/bind', path), 'utf8')

describe.skipIf(!have('busybox'))('data places', () => {
  test('are flushed once, whatever their number, and never made again', () => {
    const base = device('once')
    const first = start(base)
    expect([first.code, first.did.filter((name) => name === 'sync')]).toEqual([0, ['sync']])
    expect([text(base, 'opt/app/conf'), text(base, 'opt/app/logs/first'), text(base, 'srv/ab/x')]).toEqual([
      'as shipped',
      'line',
      'x',
    ])
    expect(readdirSync(join(base, 'data/bistable/seeding'))).toEqual([])
    writeFileSync(join(base, 'data/bind/opt/app/conf'), 'of the device')
    rmSync(join(base, 'data/bind/opt/app/logs/first'))
    const second = start(base)
    expect([second.code, second.did.filter((name) => name !== 'rm')]).toEqual([0, []])
    expect([text(base, 'opt/app/conf'), existsSync(join(base, 'data/bind/opt/app/logs/first'))]).toEqual([
      'of the device',
      false,
    ])
  })

  test('are whole or not there when the power goes at any program', () => {
    let cuts = 0
    for (let cutAt = 1; cutAt < 50; cutAt++) {
      const base = device(`cut${cutAt}`)
      const { cut } = start(base, cutAt)
      if (existsSync(join(base, 'data/bind/opt/app'))) {
        expect([text(base, 'opt/app/conf'), text(base, 'opt/app/logs/first')]).toEqual(['as shipped', 'line'])
        // The device's from now on.
        writeFileSync(join(base, 'data/bind/opt/app/conf'), 'of the device')
      }
      const kept = join(dir, 'kept')
      cpSync(join(base, 'data'), kept, { recursive: true })
      expect([start(base).code, text(base, 'srv/ab/x')]).toEqual([0, 'x'])
      if (existsSync(join(kept, 'bind/opt/app'))) expect(text(base, 'opt/app/conf')).toBe('of the device')
      rmSync(kept, { recursive: true })
      if (!cut) break
      cuts++
    }
    expect(cuts).toBeGreaterThan(7)
  })

  test('a place that cannot be copied is an error, and nothing is put in place', () => {
    const base = device('full')
    rmSync(join(base, 'data/bistable/seeding'), { recursive: true })
    writeFileSync(join(base, 'data/bistable/seeding'), '')
    expect(start(base).code).toBe(7)
    expect(existsSync(join(base, 'data/bind'))).toBe(false)
  })
})
