import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { exportStatement } from '../../keys/export.ts'
import { codeOfAsync } from '../codes.ts'
import { keysCli, keysJson } from '../helpers/keys-cli.ts'
import { have, run } from '../helpers/run.ts'
import { key, signer } from './helpers.ts'

const ready = have('signify-openbsd', 'minisign', 'openssl')

let dir: string
const at = (...parts: string[]) => join(dir, ...parts)
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-export-'))
  await keysJson('keys', 'init', at('k'), '--product', 'demo', '--unprotected')
})
afterAll(() => rmSync(dir, { recursive: true }))

describe.skipIf(!ready)('keys export', () => {
  it('gives files that openssl, signify and minisign accept, and refuse when a byte changes', async () => {
    const made = await keysJson(
      ...['keys', 'export', at('k', 'root.json'), '--to', at('out'), '--root', at('k', 'root.json')],
      ...['--key', at('k', 'root-1.key'), '--key', at('k', 'root-2.key')],
    )
    const checks = made['checks'] as string[]
    // Two signatures, three tools each.
    expect(checks).toHaveLength(6)
    const check = (line: string, ok: readonly number[] = [0]) => run('sh', ['-c', line], { cwd: at('out'), ok })
    for (const line of checks) check(line)
    const path = at('out', 'statement.signed')
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(100) ^ 1, 100)
    writeFileSync(path, bytes)
    for (const line of checks) check(line, [1, 2])
  })

  it('needs no private key for openssl and signify', async () => {
    const made = await keysJson(
      ...['keys', 'export', at('k', 'root.json'), '--to', at('public'), '--public-key', at('k', 'root-2.key')],
    )
    expect(made['checks']).toHaveLength(2)
    expect(readdirSync(at('public')).some((name) => name.includes('mini'))).toBe(false)
    for (const line of made['checks'] as string[]) run('sh', ['-c', line], { cwd: at('public') })
  })
})

describe('keys export', () => {
  it('refuses keys that did not sign, folders with such files, and signers that lie', async () => {
    const to = ['keys', 'export', at('k', 'root.json'), '--to', at('none')]
    expect((await keysCli(...to, '--public-key', at('k', 'root-3.key'))).err).toContain('EXPORT_NOTHING')
    const again = ['keys', 'export', at('k', 'root.json'), '--root', at('k', 'root.json'), '--to', at('twice')]
    expect((await keysCli(...again)).code).toBe(0)
    expect((await keysCli(...again)).err).toContain('KEY_FILE_EXISTS')
    const { addSignature } = await import('../../keys/statement.ts')
    const envelope = await addSignature(
      { payloadType: 'text/x-test', payload: Buffer.from('x'), signatures: [] },
      signer(1),
    )
    const liar = { ...signer(1), sign: signer(2).sign }
    expect(await codeOfAsync(() => exportStatement(envelope, [key(1)], [liar]))).toBe('SIGNATURE_REFUSED')
  })
})
