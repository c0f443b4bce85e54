import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import { installProgram } from '../helpers/program.ts'
import { have } from '../helpers/run.ts'

// docs/keys.md as a new user follows it: every block marked sh, one after the other, in an empty folder.

const page = readFileSync(resolve(import.meta.dirname, '../../docs/keys.md'), 'utf8')
const commands = [...page.matchAll(/^```sh\n(.*?)^```/gms)].map(([, block]) => block).join('\n')

let dir: string
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-page-'))
  mkdirSync(join(dir, 'bin'))
  mkdirSync(join(dir, 'work'))
  await installProgram(join(dir, 'bin'))
})
afterAll(() => rmSync(dir, { recursive: true }))

describe.skipIf(!have('openssl', 'signify-openbsd', 'minisign'))('docs/keys.md', () => {
  it('works as it is written', () => {
    writeFileSync(join(dir, 'page.sh'), commands)
    const done = spawnSync('bash', ['-exuo', 'pipefail', join(dir, 'page.sh')], {
      cwd: join(dir, 'work'),
      env: { ...process.env, PATH: `${join(dir, 'bin')}:${process.env['PATH']}` },
      encoding: 'utf8',
    })
    expect(done.stderr.split('\n').slice(-12).join('\n')).not.toContain('BistableError')
    expect(done, done.stderr.slice(-1500)).toMatchObject({ status: 0 })
    const roots = [1, 2, 3, 4, 5].map((n) => readFileSync(join(dir, 'work', 'product', 'roots', `${n}.json`)))
    // The device that only knows root 1 gets to the last one, and every change of the page is in it.
    const { current } = walkRoots(roots, trustAnchor(readFileSync(join(dir, 'work', 'product', 'root.json'))))
    expect(current).toMatchObject({ version: 5, epoch: 2, product: 'my-product' })
    expect(current.roles.root.keys).toHaveLength(3)
    const publicKey = (path: string) => JSON.parse(readFileSync(join(dir, 'work', path), 'utf8')).publicKey
    expect(current.roles.release.keys).toEqual([publicKey('product/release-2.key')])
    expect(current.roles.fleet.keys).toEqual([publicKey('product/fleet-2.key')])
    expect(current.roles.root.keys).not.toContain(publicKey('ada/root.key'))
    // Dozens of processes: seconds alone on the machine, more beside other tests.
  }, 180_000)
})
