import { spawnSync } from 'node:child_process'
import { copyFile, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { keyVerbs } from '../../keys/cli.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { loadSigner } from '../../keys/file-signer.ts'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'

let dir = ''
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'bistable-keys-'))
  await bistable('keys', 'init', at('dev'), '--product', 'demo', '--unprotected')
})
afterAll(() => rm(dir, { recursive: true }))
const at = (...parts: string[]) => join(dir, ...parts)

async function bistable(...argv: string[]) {
  const out: string[] = []
  const err: string[] = []
  const terminal = { out: (l: string) => out.push(l), err: (l: string) => err.push(l), interactive: false }
  const code = await runCli(keyVerbs, argv, terminal, new AbortController().signal)
  return { code, out: out.join('\n'), err: err.join('\n') }
}
const json = async (...argv: string[]) => JSON.parse((await bistable(...argv, '--json')).out)

describe('keys init', () => {
  it('makes root, release and fleet keys and a root that is an anchor', async () => {
    const files = (await readdir(at('dev'))).sort()
    expect(files).toEqual(
      ['fleet-1.key', 'release-1.key', 'root-1.key', 'root-2.key', 'root-3.key', 'root.json', 'roots'].sort(),
    )
    const { current } = trustAnchor(await readFile(at('dev', 'root.json')))
    expect(current).toMatchObject({ product: 'demo', version: 1, epoch: 1, roles: { root: { threshold: 2 } } })
    expect(current.roles.root.keys).toHaveLength(3)
    const release = await loadSigner(at('dev', 'release-1.key'), async () => new Uint8Array())
    expect(current.roles.release.keys).toEqual([release.publicKey])
    expect(await readFile(at('dev', 'roots', '1.json'))).toEqual(await readFile(at('dev', 'root.json')))
    for (const name of files.filter((file) => file.endsWith('.key')))
      expect((await stat(at('dev', name))).mode & 0o777).toBe(0o600)
  })

  it('protects keys with the passphrase of a file, and takes the wanted numbers', async () => {
    await writeFile(at('pass'), 'correct horse\n')
    const made = await bistable(
      ...['keys', 'init', at('small'), '--product', 'p', '--root-keys', '1', '--root-threshold', '1'],
      ...['--passphrase-file', at('pass')],
    )
    expect(made).toMatchObject({ code: 0, err: '' })
    const text = await readFile(at('small', 'root-1.key'), 'utf8')
    expect(JSON.parse(text).protection).toBe('scrypt-xchacha20poly1305')
    expect((await loadSigner(at('small', 'root-1.key'), async () => Buffer.from('correct horse'))).publicKey).toBe(
      trustAnchor(await readFile(at('small', 'root.json'))).current.roles.root.keys[0],
    )
  })

  it('touches nothing where keys are already', async () => {
    const before = await readFile(at('dev', 'root.json'))
    const again = await bistable('keys', 'init', at('dev'), '--product', 'demo', '--unprotected')
    expect(again.code).toBe(2)
    expect(again.err).toContain('KEY_FILE_EXISTS')
    expect(await readFile(at('dev', 'root.json'))).toEqual(before)
  })

  it.each([
    [['--product', 'p']],
    [['--product', 'p', '--unprotected', '--passphrase-fd', '3']],
    [['--product', 'p', '--passphrase-file', 'x', '--passphrase-fd', '3']],
    [['--product', 'p', '--passphrase-fd', 'x']],
    [['--unprotected']],
    [['--product', 'p', '--unprotected', '--root-keys', '17']],
    [['--product', 'p', '--unprotected', '--root-keys', '2', '--root-threshold', '3']],
    [['--product', 'p', '--unprotected', '--root-threshold', '0']],
    [['another', '--product', 'p', '--unprotected']],
    [['--product', 'my product', '--unprotected']],
  ])('refuses %j as usage', async (options) => {
    const made = await bistable('keys', 'init', at('refused'), ...options)
    expect(made.code).toBe(2)
    expect(made.err).toContain('USAGE')
    expect(await readdir(dir)).not.toContain('refused')
  })
})

describe('keys generate, show and sign', () => {
  it('adds signatures of two people to one statement, in its file', async () => {
    const release = await json('keys', 'generate', at('a.key'), '--unprotected')
    const second = await json('keys', 'generate', at('b.key'), '--unprotected')
    const payload = Buffer.from('{"type":"release","name":"\u202eevil"}')
    await writeFile(at('statement.json'), encodeEnvelope(await signStatement('text/x-test', payload, [])))
    expect(await json('keys', 'sign', at('statement.json'), '--key', at('a.key'))).toMatchObject({
      ok: true,
      signedBy: [release.publicKey],
      signatures: 1,
    })
    expect(await json('keys', 'sign', at('statement.json'), '--key', at('b.key'))).toMatchObject({
      signedBy: [second.publicKey],
      signatures: 2,
    })
    const again = await bistable('keys', 'sign', at('statement.json'), '--key', at('a.key'))
    expect(again.err).toContain('SIGNATURE_PRESENT')
    const shown = await json('keys', 'show', at('statement.json'))
    expect(shown).toMatchObject({ kind: 'statement', payloadType: 'text/x-test', signatures: 2, unknownSignatures: 2 })
    // What is shown cannot turn the line around.
    expect((await bistable('keys', 'show', at('statement.json'))).out).toContain('"\\u202eevil"')
  })

  it('shows a key without its secret', async () => {
    const { publicKey } = await json('keys', 'generate', at('c.key'), '--unprotected')
    const shown = await bistable('keys', 'show', at('c.key'))
    expect(shown.out).toContain(publicKey)
    expect(shown.out).not.toContain(JSON.parse(await readFile(at('c.key'), 'utf8')).seed)
  })

  it('names the root keys that signed', async () => {
    const shown = await json('keys', 'show', at('dev', 'root.json'))
    expect(shown.tallies).toMatchObject([{ rootVersion: 1, role: 'root', threshold: 2, enough: true }])
    expect(shown.unknownSignatures).toBe(0)
  })

  it('says what is missing, for each file that is named', async () => {
    expect((await bistable('keys', 'show', at('nowhere'))).err).toContain('KEY_FILE_MISSING')
    expect((await bistable('keys', 'sign', at('nowhere'), '--key', at('c.key'))).err).toContain('KEY_FILE_MISSING')
    const args = ['keys', 'sign', at('dev', 'root.json'), '--key', at('small', 'root-1.key')]
    expect((await bistable(...args)).err).toContain('KEY_PASSPHRASE_MISSING')
    expect((await bistable(...args, '--passphrase-file', at('nowhere'))).err).toContain('KEY_FILE_MISSING')
  })

  it('reads a passphrase from a descriptor', async () => {
    const main = `import { runCli } from './base/cli.ts'; import { keyVerbs } from './keys/cli.ts'
      const terminal = { out: console.log, err: console.error, interactive: false }
      process.exitCode = await runCli(keyVerbs, process.argv.slice(1), terminal, new AbortController().signal)`
    const run = (input: string, ...argv: string[]) =>
      spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', main, '--', 'keys', ...argv], {
        cwd: resolve(import.meta.dirname, '../..'),
        input,
        encoding: 'utf8',
      })
    expect(run('sesame\n', 'generate', at('fd.key'), '--passphrase-fd', '0')).toMatchObject({ status: 0, stderr: '' })
    await copyFile(at('statement.json'), at('fd.json'))
    const sign = ['sign', at('fd.json'), '--key', at('fd.key'), '--passphrase-fd', '0']
    expect(run('wrong', ...sign).stderr).toContain('KEY_PASSPHRASE_WRONG')
    expect(run('sesame', ...sign)).toMatchObject({ status: 0, stderr: '' })
  })
})

describe('keys rotate', () => {
  it('writes the next root; both thresholds sign it; the chain then walks', async () => {
    const next = at('2.json')
    await json('keys', 'generate', at('root-4.key'), '--unprotected')
    const made = await bistable(
      ...['keys', 'rotate', at('dev', 'root.json'), '--out', next, '--raise-epoch'],
      ...['--add', `root=${at('root-4.key')}`, '--remove', at('dev', 'root-1.key'), '--threshold', 'root=3'],
    )
    expect(made).toMatchObject({ code: 0, err: '' })
    for (const key of [at('dev', 'root-2.key'), at('dev', 'root-3.key'), at('root-4.key')])
      expect((await bistable('keys', 'sign', next, '--key', key)).code).toBe(0)
    const shown = await json('keys', 'show', next, '--root', at('dev', 'root.json'))
    expect(shown.tallies).toMatchObject([
      { rootVersion: 1, role: 'root', enough: true },
      { rootVersion: 2, role: 'root', threshold: 3, enough: true },
    ])
    const { current } = walkRoots([await readFile(at('dev', 'root.json')), await readFile(next)])
    expect(current).toMatchObject({ version: 2, epoch: 2, roles: { root: { threshold: 3 } } })
  })

  it.each([
    ['a role that is none', ['--add', 'boss=x'], 'USAGE'],
    ['a key that is not listed', ['--remove', 'KEY'], 'ROOT_INVALID'],
    ['a threshold over the number of keys', ['--threshold', 'fleet=2'], 'ROOT_INVALID'],
    ['a key of small order', ['--add', `fleet=01${'00'.repeat(31)}`], 'KEY_INVALID'],
  ])('refuses %s and writes nothing', async (_, options, code) => {
    const { publicKey } = JSON.parse(await readFile(at('c.key'), 'utf8'))
    const out = at('refused.json')
    const args = options.map((option) => option.replace('KEY', publicKey))
    expect((await bistable('keys', 'rotate', at('dev', 'root.json'), '--out', out, ...args)).err).toContain(code)
    expect(await readdir(dir)).not.toContain('refused.json')
  })
})
