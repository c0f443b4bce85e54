import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { readElf } from '../../initramfs/elf.ts'
import { buildAddon } from '../../publisher/addon.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { have, run } from '../helpers/run.ts'

/** An add-on whose programs would not start on its release is refused where it is built, and not found out on a device. */

const folder = mkdtempSync(join(tmpdir(), 'bistable-libraries-'))
afterAll(() => rmSync(folder, { recursive: true }))
const PROGRAM = '/bin/ls'
let made = 0

/** A folder with these libraries (their names are all that counts) and, unless told, the program. */
function tree(libraries: readonly string[], program = true): string {
  const root = join(folder, `tree${made++}`)
  mkdirSync(join(root, 'usr/bin'), { recursive: true })
  mkdirSync(join(root, 'usr/lib/x86_64-linux-gnu'), { recursive: true })
  for (const name of libraries) writeFileSync(join(root, 'usr/lib/x86_64-linux-gnu', name), '')
  if (program) copyFileSync(PROGRAM, join(root, 'usr/bin/ls'))
  return root
}

async function bundle(libraries: readonly string[]): Promise<string> {
  const image = join(folder, `rootfs${made++}`)
  run('mksquashfs', [tree(libraries, false), image, '-quiet', '-no-progress', '-comp', 'zstd'])
  const plan = { boot: new Uint8Array(4096), rootfs: readFileSync(image) }
  return (await makeBundle(folder, `release${made++}`, plan)).path
}

const build = (source: string, bases: readonly string[]) =>
  buildAddon(
    {
      ...{ folder: source, name: 'debug', kind: 'debug', summary: 'tools', fixes: [], bases, product: 'demo' },
      ...{ issued: '2026-11-21T00:00:00Z', expires: '2026-12-21T00:00:00Z' },
    },
    join(folder, `build${made++}`),
  )

describe.skipIf(!have('mksquashfs'))('libraries of an add-on', () => {
  const { libraries } = readElf(readFileSync(PROGRAM), PROGRAM)
  const [first = '', ...others] = libraries

  it('are in its release, or in itself', async () => {
    expect(libraries).toContain('libc.so.6')
    const whole = await bundle(libraries)
    await expect(build(tree([]), [whole])).resolves.toMatchObject({ name: 'debug' })
    await expect(build(tree([first]), [await bundle(others)])).resolves.toMatchObject({ name: 'debug' })
  })

  it('ADDON_LIBRARY names the program, what it lacks, and the release', async () => {
    await expect(build(tree([]), [await bundle(others)])).rejects.toMatchObject({
      code: 'ADDON_LIBRARY',
      message: expect.stringMatching(
        new RegExp(`usr/bin/ls needs ${first}, which neither the add-on nor [0-9a-f]{64}`),
      ),
    })
  })

  it('are not asked for where a release is only named, nor of what is no program of this kind', async () => {
    await expect(build(tree([]), ['ab'.repeat(32)])).resolves.toMatchObject({ name: 'debug' })
    const firmware = tree([], false)
    writeFileSync(join(firmware, 'usr/lib/firmware'), Buffer.from('\x7fELF\x01\x02\x01'.padEnd(64, '\0'), 'latin1'))
    await expect(build(firmware, [await bundle([])])).resolves.toMatchObject({ name: 'debug' })
  })
})
