import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { pae } from '../../keys/dsse.ts'
import { spkiOf, verifySignature } from '../../keys/ed25519.ts'
import { openSigner, publicKeyAt } from '../../keys/signers/open.ts'
import { addSignature } from '../../keys/statement.ts'
import type { Envelope } from '../../keys/types.ts'
import { codeOfAsync } from '../codes.ts'
import { run } from '../helpers/run.ts'
import { key } from '../keys/helpers.ts'
import { edge } from './edge.ts'

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-command-'))
})
afterAll(() => rmSync(dir, { recursive: true }))

const envelope: Envelope = { payloadType: 'text/x-test', payload: Buffer.alloc(3000, 7), signatures: [] }

/** A key that OpenSSL made and holds; the command signs with it. */
function opensslKey(): { publicKey: string; command: string } {
  run('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', join(dir, 'key.pem')])
  run('openssl', ['pkey', '-in', join(dir, 'key.pem'), '-pubout', '-outform', 'DER', '-out', join(dir, 'pub.der')])
  const publicKey = readFileSync(join(dir, 'pub.der')).subarray(12).toString('hex')
  // OpenSSL wants a file to sign at once, so the script keeps exactly what came.
  const script = `cat >"${dir}/message"; openssl pkeyutl -sign -rawin -inkey "${dir}/key.pem" -in "${dir}/message"`
  writeFileSync(join(dir, 'sign.sh'), script)
  return { publicKey, command: `sh ${dir}/sign.sh` }
}

describe('a signing command', () => {
  it('gets the exact bytes and gives a signature, raw or as base64', async () => {
    const { publicKey, command } = opensslKey()
    for (const [n, line] of [command, `${command} | base64 -w0; echo`].entries()) {
      const signer = await openSigner(`command:${publicKey}:${line}`, edge())
      const signed = await addSignature({ ...envelope, payload: Buffer.alloc(3000, n) }, signer)
      const message = pae(signed.payloadType, signed.payload)
      expect(readFileSync(join(dir, 'message'))).toEqual(Buffer.from(message))
      expect(verifySignature(signer.publicKey, message, signed.signatures[0] ?? new Uint8Array())).toBe(true)
    }
    expect(Buffer.from(spkiOf(await publicKeyAt(`command:${publicKey}:x`, edge())))).toEqual(
      readFileSync(join(dir, 'pub.der')),
    )
  })

  it.each([
    ['lies: 64 bytes that are no signature', 'head -c 64 /dev/zero', 'SIGNATURE_REFUSED'],
    ['signs with another key', 'CMD', 'SIGNATURE_REFUSED'],
    ['fails', 'exit 3', 'SIGNER_FAILED'],
    ['fails after a good signature', 'CMD; exit 1', 'SIGNER_FAILED'],
    ['is not there', '/no/such/program', 'SIGNER_FAILED'],
    ['prints nothing', 'true', 'SIGNER_FAILED'],
    ['prints 63 bytes', 'head -c 63 /dev/zero', 'SIGNER_FAILED'],
    ['prints without end', 'cat /dev/zero', 'SIGNER_FAILED'],
    ['prints words', 'echo please insert the token', 'SIGNER_FAILED'],
  ])('that %s is refused, and nothing is signed', async (_, line, code) => {
    const { command } = opensslKey()
    const signer = await openSigner(`command:${key(1)}:${line.replace('CMD', command)}`, edge())
    expect(await codeOfAsync(() => addSignature(envelope, signer))).toBe(code)
  })

  it('is stopped with the call', async () => {
    const stop = new AbortController()
    const signer = await openSigner(`command:${key(1)}:exec sleep 100`, edge({ signal: stop.signal }))
    const signing = signer.sign(new Uint8Array(1))
    stop.abort(new Error('stopped by SIGINT'))
    await expect(signing).rejects.toThrow('stopped by SIGINT')
  })
})
