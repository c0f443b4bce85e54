import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { hex } from '../../base/bytes.ts'
import { signFile, signPaths } from '../../publisher/sign.ts'
import { noise } from '../bundle/tools.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { have, run } from '../helpers/run.ts'
import { key, signedRoot, signer } from '../keys/helpers.ts'
import { expectRefusal } from './expect.ts'

// A disk that fills up while the publisher's real commands write to it.

let work: string
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'bistable-full-'))
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

function keyFile(n: number): string {
  const path = join(work, `${n}.key`)
  const seed = hex(new Uint8Array(32).fill(n))
  const file = { type: 'bistable-key-1', publicKey: key(n), protection: 'none', seed }
  writeFileSync(path, JSON.stringify(file), { mode: 0o600 })
  return path
}

it.skipIf(!have('unshare', 'mount'))(
  'is named as what is wrong, by every command, and nothing half is left',
  async () => {
    const root = join(work, 'root.json')
    writeFileSync(root, await signedRoot({}, [1, 2]))
    mkdirSync(join(work, 'roots'))
    writeFileSync(join(work, 'roots/1.json'), await signedRoot({}, [1, 2]))
    const [old, next] = [noise(1 << 20, 'old'), noise(1 << 20, 'next')]
    const boot = Buffer.alloc(40_960, 1)
    const a = await makeBundle(work, 'a', { boot, rootfs: old })
    const half = Buffer.concat([old.subarray(0, 600_064), next.subarray(600_064)])
    const b = await makeBundle(work, 'b', {
      boot,
      rootfs: half,
      number: { epoch: 0, counter: 3 },
      boundaries: [1 << 20],
    })
    const full = join(work, 'full')
    mkdirSync(full)
    const commands = [
      ['publish', a.path, '--to', full, '--key', keyFile(21)],
      ['delta', a.path, b.path, '--output', join(full, 'x.delta')],
      ['disk', a.path, '--root', root, '--output', join(full, 'disk.img'), '--bootloader', 'uboot'],
      ['pack', join(work, 'b.build'), '--roots', join(work, 'roots'), '--output', join(full, 'b.bundle')],
    ]
    await signFile(await signPaths(join(work, 'b.build'), undefined), [signer(11)])
    // A file system of its own, seen by these commands only.
    const script = 'mount -t tmpfs -o size=128k none "$1" && shift && exec "$@"'
    const program = ['node', '--import', 'tsx', join(import.meta.dirname, 'on-full-disk.ts')]
    const said = run('unshare', ['-rm', 'sh', '-c', script, 'sh', full, ...program, full, JSON.stringify(commands)], {
      cwd: join(import.meta.dirname, '../..'),
    })
    const results = said
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    for (const [i, [verb]] of commands.entries()) {
      const code = verb === 'pack' ? 'BUNDLE_WRITE' : 'FILE_FULL'
      expectRefusal(results[i], { family: 'storage', code, says: [full, 'no space left'] })
      // `publish` has made its folders first.
      expect(results[i].left).toEqual(['bundles', 'channels'])
    }
  },
)
