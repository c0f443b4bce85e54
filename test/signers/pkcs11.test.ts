import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MAX_SIGNED_BYTES, pae } from '../../keys/dsse.ts'
import { spkiOf, verifySignature } from '../../keys/ed25519.ts'
import { openSigner, publicKeyAt } from '../../keys/signers/open.ts'
import { addSignature } from '../../keys/statement.ts'
import type { Envelope } from '../../keys/types.ts'
import { codeOfAsync } from '../codes.ts'
import { keysCli, keysJson } from '../helpers/keys-cli.ts'
import { have, run } from '../helpers/run.ts'
import { edge } from './edge.ts'

const MODULE = '/usr/lib/softhsm/libsofthsm2.so'
const ready = have('softhsm2-util', 'pkcs11-tool', 'openssl')

let dir: string
const uri = (what: string) => `pkcs11:token=bistable-test;${what}?module-path=${MODULE}`
const pin = (text: string) => edge({ passphrase: async () => Buffer.from(text) })

describe.skipIf(!ready)('a PKCS#11 token (SoftHSM)', () => {
  const before = process.env['SOFTHSM2_CONF']
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'bistable-hsm-'))
    mkdirSync(join(dir, 'tokens'))
    writeFileSync(join(dir, 'softhsm2.conf'), `directories.tokendir = ${dir}/tokens\nobjectstore.backend = file\n`)
    writeFileSync(join(dir, 'pin'), '1234\n')
    process.env['SOFTHSM2_CONF'] = join(dir, 'softhsm2.conf')
    const token = ['--module', MODULE, '--token-label', 'bistable-test', '--login', '--pin', '1234']
    run('softhsm2-util', ['--init-token', '--free', '--label', 'bistable-test', '--pin', '1234', '--so-pin', '5678'])
    for (const [label, id] of [
      ['release', '01'],
      ['twin', '02'],
      ['twin', '03'],
    ] as const)
      run('pkcs11-tool', [...token, '--keypairgen', '--key-type', 'EC:edwards25519', '--label', label, '--id', id])
    run('pkcs11-tool', [...token, '--keypairgen', '--key-type', 'EC:prime256v1', '--label', 'curve', '--id', '04'])
    const always = ['--label', 'always', '--id', '05', '--always-auth']
    run('pkcs11-tool', [...token, '--keypairgen', '--key-type', 'EC:edwards25519', ...always])
  })
  afterAll(() => {
    if (before === undefined) delete process.env['SOFTHSM2_CONF']
    else process.env['SOFTHSM2_CONF'] = before
    rmSync(dir, { recursive: true })
  })

  it('tells its public key without a PIN, the same that OpenSC reads', async () => {
    const publicKey = await publicKeyAt(uri('object=release'), edge())
    const token = ['--module', MODULE, '--token-label', 'bistable-test']
    run('pkcs11-tool', [...token, '--read-object', '--type', 'pubkey', '--id', '01', '-o', join(dir, 'pub')])
    const der = run('openssl', ['pkey', '-pubin', '-in', join(dir, 'pub'), '-outform', 'DER'])
    expect(Buffer.from(der, 'latin1')).toEqual(Buffer.from(spkiOf(publicKey)))
    expect(await publicKeyAt(uri('id=%01'), edge())).toBe(publicKey)
    // The only token need not be named; SoftHSM always shows an empty slot beside it.
    expect(await publicKeyAt(`pkcs11:id=%01?module-path=${MODULE}`, edge())).toBe(publicKey)
    expect(await keysJson('keys', 'show', uri('object=release'))).toMatchObject({ kind: 'key', publicKey })
  })

  // pkcs11-tool itself stops at 1024 bytes; statements go up to 4096.
  it.each([1, 1024, 1025, MAX_SIGNED_BYTES])('signs %i bytes', async (length) => {
    const signer = await openSigner(uri('object=release'), pin('1234'))
    const empty = pae('text/x-test', new Uint8Array()).length + String(length).length - 1
    const envelope: Envelope = {
      payloadType: 'text/x-test',
      payload: Buffer.alloc(Math.max(0, length - empty), 5),
      signatures: [],
    }
    const message = pae(envelope.payloadType, envelope.payload)
    if (length === MAX_SIGNED_BYTES) expect(message.length).toBe(MAX_SIGNED_BYTES)
    const signed = await addSignature(envelope, signer)
    expect(verifySignature(signer.publicKey, message, signed.signatures[0] ?? new Uint8Array())).toBe(true)
  })

  it('signs with a key that wants its PIN for each signature', async () => {
    const signer = await openSigner(uri('object=always'), pin('1234'))
    for (const message of [Buffer.from('one'), Buffer.from('two')])
      expect(verifySignature(signer.publicKey, message, await signer.sign(message))).toBe(true)
  })

  it('signs a statement by the command line, the PIN from a file, either way', async () => {
    const path = join(dir, 'root.json')
    const add = (role: string, key: string) => ['--add', `${role}=${key}`]
    const release = await publicKeyAt(uri('id=%02'), edge())
    await keysJson(
      ...['keys', 'compose', path, '--product', 'p', ...add('root', uri('object=release'))],
      ...[...add('release', release), ...add('fleet', uri('id=%03'))],
    )
    const sign = ['keys', 'sign', path, '--key']
    await keysJson(...sign, `${uri('object=release')}&pin-source=${dir}/pin`)
    await keysJson(...sign, uri('id=%02'), '--passphrase-file', join(dir, 'pin'))
    const shown = await keysJson('keys', 'show', path)
    expect(shown).toMatchObject({ signatures: 2, unknownSignatures: 0 })
    expect(existsSync(path)).toBe(true)
  })

  it.each([
    ['a wrong PIN', 'object=release', '9999', 'KEY_PASSPHRASE_WRONG'],
    ['an empty PIN', 'object=release', '', 'KEY_PASSPHRASE_WRONG'],
    ['a key that is not there', 'object=nobody', '1234', 'SIGNER_MISSING'],
    ['a name that two keys have', 'object=twin', '1234', 'SIGNER_MISSING'],
    ['a key of another curve', 'object=curve', '1234', 'SIGNER_MISSING'],
  ])('with %s is refused', async (_, what, text, code) => {
    const work = async () => (await openSigner(uri(what), pin(text))).sign(new Uint8Array(10))
    expect(await codeOfAsync(work)).toBe(code)
  })

  it('with another token, or a library that is none, is refused', async () => {
    const other = `pkcs11:token=other;object=release?module-path=${MODULE}`
    expect(await codeOfAsync(() => publicKeyAt(other, edge()))).toBe('SIGNER_MISSING')
    const none = `pkcs11:object=release?module-path=${dir}/pin`
    expect(await codeOfAsync(() => publicKeyAt(none, edge()))).toBe('SIGNER_MISSING')
    const { err } = await keysCli('keys', 'show', 'pkcs11:object=release?module-path=/no/such.so')
    expect(err).toContain('SIGNER_MISSING')
    const lost = `${uri('object=release')}&pin-source=${dir}/nowhere`
    expect(await codeOfAsync(async () => (await openSigner(lost, edge())).sign(new Uint8Array(1)))).toBe(
      'KEY_FILE_MISSING',
    )
  })
})
