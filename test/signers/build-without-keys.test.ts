import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { cleanTar } from '../../publisher/tar/clean.ts'
import { buildVerb, lintVerb } from '../../publisher/verbs/image.ts'
import { keysCli } from '../helpers/keys-cli.ts'
import { installProgram } from '../helpers/program.ts'
import { have } from '../helpers/run.ts'
import { imageOf } from '../oci/images.ts'
import { fitSpecs, memoryTree } from '../publisher/memory-tree.ts'

// The build step sees no key (B12): its code has no signer in it, and it runs where none can be reached.

const root = resolve(import.meta.dirname, '../..')
const HANDLES_KEYS = /^keys\/(file-signer|passphrase|terminal|shell|signers\/|verbs\/|cli)/

async function inputsOf(entry: string): Promise<string[]> {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: [entry],
    ...{ bundle: true, write: false, metafile: true, packages: 'external', platform: 'node', format: 'esm' },
  })
  return Object.keys(metafile.inputs)
}

describe('B12: build', () => {
  let dir: string
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'bistable-keyless-'))
  })
  afterAll(() => rmSync(dir, { recursive: true, force: true }))

  it('has no signer in its code, and no option for one', async () => {
    const inputs = await inputsOf('publisher/verbs/image.ts')
    expect(inputs).toContain('publisher/build.ts')
    expect(inputs.filter((path) => HANDLES_KEYS.test(path))).toEqual([])
    // The same question to the verbs that sign: the pattern can find something.
    expect((await inputsOf('publisher/verbs/release.ts')).some((path) => HANDLES_KEYS.test(path))).toBe(true)
    for (const { options } of [lintVerb, buildVerb])
      expect(Object.keys(options ?? {}).filter((name) => /key|pass|token/.test(name))).toEqual([])
  })

  it('has no signer on the device either', async () => {
    expect((await inputsOf('device/main.ts')).filter((path) => HANDLES_KEYS.test(path))).toEqual([])
  })

  it.skipIf(!have('strace', 'mksquashfs'))(
    'runs without environment and looks at no key that lies around',
    async () => {
      for (const name of ['bin', 'home', 'work']) mkdirSync(join(dir, name))
      await installProgram(join(dir, 'bin'))
      const pieces: Uint8Array[] = []
      for await (const piece of cleanTar(memoryTree(await fitSpecs()))) pieces.push(piece)
      const image = imageOf(Buffer.concat(pieces))
      // Keys where a careless program would find them.
      for (const place of ['home', 'work'])
        expect((await keysCli('keys', 'init', join(dir, place, 'keys'), '--product', 'p', '--unprotected')).code).toBe(
          0,
        )
      writeFileSync(join(dir, 'work', 'release-1.key'), 'bait')
      const log = join(dir, 'calls')
      const command = [join(dir, 'bin', 'bistable'), 'build', image, '--output', 'os.build', '--version', '1']
      const traced = spawnSync(
        'strace',
        ['-f', '-qq', '-e', 'trace=%file,connect', '-o', log, ...command, '--counter', '1', '--level', '1'],
        {
          cwd: join(dir, 'work'),
          env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: join(dir, 'home') },
          encoding: 'utf8',
        },
      )
      expect(traced, traced.stderr.slice(-1500)).toMatchObject({ status: 0 })
      expect(existsSync(join(dir, 'work', 'os.build', 'statement.json'))).toBe(true)
      const calls = readFileSync(log, 'latin1').split('\n')
      expect(calls.some((call) => call.includes('os.build/'))).toBe(true)
      expect(calls.filter((call) => /\.key"|\/keys\/|\/dev\/tty"|pkcs11|AF_INET/.test(call))).toEqual([])
    },
  )
})
