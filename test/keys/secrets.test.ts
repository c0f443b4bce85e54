import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadSigner } from '../../keys/file-signer.ts'
import { keysJson } from '../helpers/keys-cli.ts'
import { installProgram } from '../helpers/program.ts'
import { have } from '../helpers/run.ts'
import { key } from './helpers.ts'

// Secrets on the way in and on the way out: what a terminal shows, what other processes can list, what is printed.

const PASSPHRASE = 'correct horse battery'
let dir: string
let program: string
const at = (...parts: string[]) => join(dir, ...parts)

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-secrets-'))
  await installProgram(dir)
  program = at('dist', 'bistable.mjs')
  writeFileSync(at('pass'), `${PASSPHRASE}\n`)
})
afterAll(() => rmSync(dir, { recursive: true }))

/** Runs under a terminal of its own and answers each prompt; returns all that the terminal showed. */
async function typed(answers: readonly (readonly [prompt: string, keys: string])[], ...argv: string[]) {
  const line = [process.execPath, program, ...argv].map((word) => `'${word}'`).join(' ')
  const child = spawn('script', ['-qec', line, '/dev/null'])
  let stdout = ''
  let answered = 0
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    stdout += piece
    const [prompt, keys] = answers[answered] ?? []
    // A person types after the prompt; what comes earlier, the terminal itself would show.
    if (prompt === undefined || !stdout.includes(prompt)) return
    answered++
    child.stdin.write(keys)
  })
  const status = await new Promise((resolve) => child.on('close', resolve))
  return { status, stdout }
}
const FIRST = 'new passphrase: '
const AGAIN = 'the same again: '
const add = (n: number) => ['--add', `${['', 'root', 'release', 'fleet'][n]}=${key(n)}`]

describe.skipIf(!have('script'))('a passphrase at the terminal', () => {
  it('is asked for twice for a new key, then once; it is not shown', async () => {
    const both = [
      [FIRST, `${PASSPHRASE}\r`],
      [AGAIN, `${PASSPHRASE}\n`],
    ] as const
    const made = await typed(both, 'keys', 'generate', at('typed.key'))
    expect(made.stdout).toMatch(/new passphrase: \s+the same again: \s+[0-9a-f]{64}/)
    expect(made.stdout).not.toContain('horse')
    expect(made.status).toBe(0)
    // The very bytes: no newline, nothing from the terminal.
    expect((await loadSigner(at('typed.key'), async () => Buffer.from(PASSPHRASE))).publicKey).toHaveLength(64)
  })

  it('can be corrected while typing, by Backspace and Ctrl-U', async () => {
    const keys = 'wrongä\x7f\x7f\x15coooä\x7f\x7f\x7frrect horse battery\n'
    const both = [
      [FIRST, keys],
      [AGAIN, `${PASSPHRASE}\n`],
    ] as const
    const made = await typed(both, 'keys', 'generate', at('corrected.key'))
    expect(made.stdout).not.toContain('KEY_')
    expect((await loadSigner(at('corrected.key'), async () => Buffer.from(PASSPHRASE))).publicKey).toHaveLength(64)
  })

  it('twice not the same, or Ctrl-C, makes no key', async () => {
    const differing = [
      [FIRST, 'one\n'],
      [AGAIN, 'two\n'],
    ] as const
    const generate = ['keys', 'generate', at('no.key')]
    expect((await typed(differing, ...generate)).stdout).toContain('KEY_PASSPHRASE_WRONG')
    expect((await typed([[FIRST, 'one\x03']], ...generate)).stdout).toContain('KEY_PASSPHRASE_MISSING')
    expect(readdirSync(dir)).not.toContain('no.key')
  })

  it('is asked for where a key is used', async () => {
    await keysJson('keys', 'compose', at('1.json'), '--product', 'p', ...[1, 2, 3].flatMap((n) => add(n)))
    const prompt = `for ${at('typed.key')}: `
    const signed = await typed([[prompt, `${PASSPHRASE}\n`]], 'keys', 'sign', at('1.json'), '--key', at('typed.key'))
    expect(signed.stdout).toContain('signatures 1')
  })
})

describe('private keys and passphrases', () => {
  const run = (...argv: string[]) => spawnSync(process.execPath, [program, ...argv], { encoding: 'utf8' })

  it('come from a command too, whose failure is a refusal', () => {
    const command = (text: string) => ['--passphrase-command', text]
    expect(run('keys', 'generate', at('c.key'), ...command(`cat ${at('pass')}`)).status).toBe(0)
    expect(run('keys', 'generate', at('d.key'), ...command('exit 1')).stderr).toContain('SIGNER_FAILED')
    expect(run('keys', 'generate', at('d.key'), ...command('true')).stderr).toContain('KEY_PASSPHRASE_MISSING')
    expect(run('keys', 'generate', at('d.key')).stderr).toContain('USAGE')
    expect(readdirSync(dir)).not.toContain('d.key')
  })

  it('are in no process list while a verb waits, nor in its environment', async () => {
    // The command stands still in the middle, with the passphrase known, so that the process can be looked at.
    const hold = `cat ${at('pass')}; echo waiting >&2; read -r go`
    const child = spawn(process.execPath, [program, 'keys', 'generate', at('e.key'), '--passphrase-command', hold])
    const ended = new Promise((resolve) => child.on('close', resolve))
    await new Promise<void>((resolve) => child.stderr.once('data', () => resolve()))
    const seen: string[] = []
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
      for (const file of ['cmdline', 'environ'])
        try {
          seen.push(readFileSync(`/proc/${pid}/${file}`, 'latin1'))
        } catch {
          // Gone meanwhile, or not ours.
        }
    child.stdin.end('go\n')
    expect(await ended).toBe(0)
    expect(seen.some((text) => text.includes('passphrase-command'))).toBe(true)
    expect(seen.filter((text) => text.includes(PASSPHRASE))).toEqual([])
  })

  it('are printed by no verb, whatever happens', () => {
    const printed: string[] = []
    const say = (...argv: string[]) => {
      const { stdout, stderr, status } = run(...argv)
      printed.push(stdout, stderr)
      return status
    }
    expect(say('keys', 'init', at('k'), '--product', 'p', '--unprotected')).toBe(0)
    expect(say('keys', 'generate', at('s.key'), '--passphrase-file', at('pass'))).toBe(0)
    const secrets = [PASSPHRASE, 'horse']
    for (const name of readdirSync(at('k')).filter((file) => file.endsWith('.key')))
      secrets.push(JSON.parse(readFileSync(at('k', name), 'utf8')).seed)
    expect(secrets.slice(2).every((seed) => /^[0-9a-f]{64}$/.test(seed))).toBe(true)
    const root = at('k', 'root.json')
    const statement = at('2.json')
    expect(say('keys', 'rotate', root, '--out', statement, '--add', `fleet=${at('c.key')}`)).toBe(0)
    expect(say('keys', 'sign', statement, '--key', at('k', 'root-1.key'), '--json')).toBe(0)
    expect(say('keys', 'show', at('k', 'root-1.key'), '--json')).toBe(0)
    expect(say('keys', 'show', statement, '--root', root)).toBe(0)
    expect(say('keys', 'export', statement, '--to', at('out'), '--key', at('k', 'root-1.key'))).toBe(0)
    // Refusals too: a wrong passphrase, a damaged key file, a key file in the wrong place.
    expect(say('keys', 'sign', root, '--key', at('s.key'), '--passphrase-command', 'echo wrong')).not.toBe(0)
    const damaged = readFileSync(at('k', 'root-2.key'), 'utf8').replace('"none"', '"node"')
    writeFileSync(at('damaged.key'), damaged, { mode: 0o600 })
    expect(say('keys', 'sign', root, '--key', at('damaged.key'))).not.toBe(0)
    expect(say('keys', 'sign', at('k', 'root-2.key'), '--key', at('k', 'root-1.key'))).not.toBe(0)
    expect(say('keys', 'rotate', at('k', 'root-2.key'), '--out', at('x.json'))).not.toBe(0)
    const all = printed.join('\n')
    expect(all).toContain('KEY_PASSPHRASE_WRONG')
    expect(secrets.filter((secret) => all.includes(secret))).toEqual([])
    // Nor is a seed in any file that is not a key file.
    for (const name of ['2.json', 'out/statement.signed'])
      for (const secret of secrets) expect(readFileSync(at(name), 'latin1')).not.toContain(secret)
  })
})
