import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MiB } from '../../base/bytes.ts'
import { cleanTar } from '../../publisher/tar/clean.ts'
import { noise } from '../bundle/tools.ts'
import { run } from '../helpers/run.ts'
import { fitSpecs, memoryTree } from './memory-tree.ts'

// What an ordinary user builds, with the built command line, is what root builds, byte for byte.

const NOBODY = 65_534
const REPO = resolve(import.meta.dirname, '../..')
let work: string
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'bistable-user-'))
  chmodSync(work, 0o755)
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

/** Names and digests of a build folder, made by user and group `id` with their own home, time zone and umask. */
async function buildAs(id: number, image: string, env: Readonly<Record<string, string>>): Promise<string[]> {
  const home = join(work, `home-${id}`)
  mkdirSync(home)
  chownSync(home, id, id)
  const command = join(work, 'program', 'bistable.mjs')
  const folder = join(home, 'release.build')
  const args = [command, 'build', image, '--output', folder, '--version', '1', '--counter', '2', '--level', '3']
  execFileSync('sh', ['-c', `umask ${env['UMASK']}; exec "$@"`, 'sh', process.execPath, ...args], {
    uid: id,
    gid: id,
    cwd: home,
    env: { PATH: process.env['PATH'] ?? '', HOME: home, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  return readdirSync(folder)
    .sort()
    .map(
      (name) =>
        `${name} ${createHash('sha256')
          .update(readFileSync(join(folder, name)))
          .digest('hex')}`,
    )
}

describe('an ordinary user', () => {
  it.skipIf(process.getuid?.() !== 0)('gets the same bytes as root', async () => {
    run(process.execPath, [join(REPO, 'scripts/build.mjs'), join(work, 'program')])
    copyFileSync(join(REPO, 'package.json'), join(work, 'package.json'))
    const tar: Uint8Array[] = []
    // More than is compressed without threads: the built program has to find theirs.
    const specs = { ...(await fitSpecs()), 'opt/large': noise(6 * MiB) }
    for await (const piece of cleanTar(memoryTree(specs))) tar.push(piece)
    writeFileSync(join(work, 'image.tar'), Buffer.concat(tar))
    const image = `rootfs:${join(work, 'image.tar')}`
    const root = await buildAs(0, image, { UMASK: '022', TZ: 'UTC' })
    const nobody = await buildAs(NOBODY, image, { UMASK: '077', TZ: 'Asia/Kathmandu' })
    expect(root.length).toBeGreaterThan(5)
    expect(nobody).toEqual(root)
  })
})
