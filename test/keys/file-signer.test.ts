import { scryptSync } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { xchacha20poly1305 } from '@noble/ciphers/chacha.js'
import { scrypt as nobleScrypt } from '@noble/hashes/scrypt.js'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { fromHex } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { publicKeyOf, verifySignature } from '../../keys/ed25519.ts'
import { createKeyFile, loadSigner, type Protection, readKeyFileInfo } from '../../keys/file-signer.ts'
import { codeOfAsync } from '../codes.ts'

const passphrase = async () => Buffer.from('correct horse')
/** A small scrypt cost: these tests are about the file, not about the hours an attacker needs. */
const quick: Protection = { kind: 'passphrase', passphrase, logN: 4 }

let dir = ''
let count = 0
const fresh = () => join(dir, `${++count}.key`)
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'bistable-keys-'))
})
afterAll(() => rm(dir, { recursive: true }))

async function changed(change: (file: Record<string, unknown>) => void, from: Protection = quick): Promise<string> {
  const path = fresh()
  await createKeyFile(path, from)
  const file = JSON.parse(await readFile(path, 'utf8'))
  change(file)
  await writeFile(path, JSON.stringify(file))
  return path
}

describe('a key file', () => {
  it.each([['passphrase', quick] as const, ['none', { kind: 'none' }] as const])(
    'signs after it was written (%s)',
    async (_, protection) => {
      const path = fresh()
      const publicKey = await createKeyFile(path, protection)
      const signer = await loadSigner(path, passphrase)
      expect(signer.publicKey).toBe(publicKey)
      const message = Buffer.from('a statement')
      expect(verifySignature(publicKey, message, await signer.sign(message))).toBe(true)
      expect((await readKeyFileInfo(path)).publicKey).toBe(publicKey)
    },
  )

  it('is readable by its owner only, whatever the umask is, and never overwritten', async () => {
    const before = process.umask(0)
    const path = fresh()
    try {
      await createKeyFile(path, quick)
    } finally {
      process.umask(before)
    }
    expect((await stat(path)).mode & 0o7777).toBe(0o600)
    const bytes = await readFile(path)
    expect(await codeOfAsync(() => createKeyFile(path, quick))).toBe('KEY_FILE_EXISTS')
    expect(await readFile(path)).toEqual(bytes)
  })

  it('opens with the algorithms it names: scrypt r=8 p=1 and XChaCha20-Poly1305', async () => {
    const path = fresh()
    const publicKey = await createKeyFile(path, { kind: 'passphrase', passphrase })
    const file = JSON.parse(await readFile(path, 'utf8'))
    expect(file.logN).toBe(17)
    const key = scryptSync('correct horse', fromHex(file.salt), 32, { N: 2 ** 17, r: 8, p: 1, maxmem: 2 ** 28 })
    const data = Buffer.concat([Buffer.from('bistable-key-1 scrypt 17 8 1 '), fromHex(publicKey)])
    const seed = xchacha20poly1305(key, fromHex(file.nonce), data).decrypt(fromHex(file.sealed))
    expect(publicKeyOf(seed)).toBe(publicKey)
  })

  it('takes the same scrypt as a second implementation', () => {
    const salt = new Uint8Array(32).fill(1)
    expect(new Uint8Array(scryptSync('p', salt, 32, { N: 16, r: 8, p: 1 }))).toEqual(
      nobleScrypt('p', salt, { N: 16, r: 8, p: 1, dkLen: 32 }),
    )
  })

  it('holds no seed in the clear unless asked to', async () => {
    const path = fresh()
    const seed = new Uint8Array(32).fill(0xa7)
    await createKeyFile(path, quick, (length) => (length === 32 ? seed.slice() : new Uint8Array(length)))
    const text = await readFile(path, 'utf8')
    // The salt is the same 32 bytes in this test; the seal is what must differ.
    expect(JSON.parse(text).sealed).not.toContain('a7'.repeat(8))
    expect(JSON.parse(text).seed).toBeUndefined()
    const signer = await loadSigner(path, passphrase)
    expect(JSON.stringify(signer)).not.toContain('a7a7')
  })

  it('does not ask for a passphrase where there is none', async () => {
    const path = fresh()
    await createKeyFile(path, { kind: 'none' })
    await loadSigner(path, () => Promise.reject(new Error('asked')))
  })

  it('is refused with a wrong, empty or endless passphrase', async () => {
    const path = fresh()
    await createKeyFile(path, quick)
    const open = (bytes: Uint8Array) => codeOfAsync(() => loadSigner(path, async () => bytes))
    expect(await open(Buffer.from('wrong'))).toBe('KEY_PASSPHRASE_WRONG')
    expect(await open(new Uint8Array())).toBe('KEY_PASSPHRASE_MISSING')
    expect(await open(new Uint8Array(1025))).toBe('KEY_PASSPHRASE_MISSING')
    const none: Protection = { kind: 'passphrase', passphrase: async () => new Uint8Array(), logN: 4 }
    expect(await codeOfAsync(() => createKeyFile(fresh(), none))).toBe('KEY_PASSPHRASE_MISSING')
  })

  it.each([0o640, 0o604, 0o660, 0o644])('is refused with mode %o', async (mode) => {
    const path = fresh()
    await createKeyFile(path, quick)
    await chmod(path, mode)
    expect(await codeOfAsync(() => loadSigner(path, passphrase))).toBe('KEY_FILE_EXPOSED')
  })

  const other = publicKeyOf(new Uint8Array(32).fill(9))
  it.each<[string, (file: Record<string, unknown>) => void, string]>([
    ['another public key', (f) => Object.assign(f, { publicKey: other }), 'KEY_PASSPHRASE_WRONG'],
    ['another cost', (f) => Object.assign(f, { logN: 5 }), 'KEY_PASSPHRASE_WRONG'],
    ['another nonce', (f) => Object.assign(f, { nonce: '00'.repeat(24) }), 'KEY_PASSPHRASE_WRONG'],
    ['another salt', (f) => Object.assign(f, { salt: '00'.repeat(32) }), 'KEY_PASSPHRASE_WRONG'],
    ['a cost that would take 2 GiB', (f) => Object.assign(f, { logN: 21 }), 'KEY_FILE_INVALID'],
    ['cost 0', (f) => Object.assign(f, { logN: 0 }), 'KEY_FILE_INVALID'],
    ['a short seal', (f) => Object.assign(f, { sealed: '00' }), 'KEY_FILE_INVALID'],
    ['another type', (f) => Object.assign(f, { type: 'bistable-key-2' }), 'KEY_FILE_INVALID'],
    ['a seed beside the seal', (f) => Object.assign(f, { seed: '00'.repeat(32) }), 'KEY_FILE_INVALID'],
    ['protection removed', (f) => Object.assign(f, { protection: 'none' }), 'KEY_FILE_INVALID'],
  ])('is refused with %s', async (_, change, code) => {
    const path = await changed(change)
    expect(await codeOfAsync(() => loadSigner(path, passphrase))).toBe(code)
  })

  it('is refused when the bare seed is not that of its public key', async () => {
    const path = await changed((f) => Object.assign(f, { publicKey: other }), { kind: 'none' })
    expect(await codeOfAsync(() => loadSigner(path, passphrase))).toBe('KEY_FILE_INVALID')
  })

  it('A25: is refused when missing, empty, truncated or too long, and its text is not quoted', async () => {
    expect(await codeOfAsync(() => loadSigner(join(dir, 'nowhere'), passphrase))).toBe('KEY_FILE_MISSING')
    expect(await codeOfAsync(() => loadSigner(dir, passphrase))).toBe('FILE_FAILED')
    const path = fresh()
    await createKeyFile(path, { kind: 'none' })
    const whole = await readFile(path, 'utf8')
    for (const text of ['', whole.slice(0, 100), whole.slice(0, -3), `${whole}x`, whole + ' '.repeat(5000)]) {
      await writeFile(path, text)
      const refusal = await loadSigner(path, passphrase).catch((error) => error)
      expect(refusal.code).toBe('KEY_FILE_INVALID')
      expect(JSON.stringify(refusal)).not.toContain(JSON.parse(whole).seed.slice(0, 8))
    }
  })

  it('is read back: a disk that changes what it is given makes no key', async () => {
    const real = nodeFiles.read
    const spy = vi.spyOn(nodeFiles, 'read').mockImplementation(async (path, limit) => {
      const bytes = await real(path, limit)
      if (bytes?.[100] !== undefined) bytes[100] ^= 1
      return bytes
    })
    try {
      expect(await codeOfAsync(() => createKeyFile(fresh(), quick))).toBe('FILE_READBACK')
    } finally {
      spy.mockRestore()
    }
  })

  it('is not left half-written where it cannot be made', async () => {
    expect(await codeOfAsync(() => createKeyFile(join(dir, 'no', 'such', 'folder'), quick))).toBe('FILE_FAILED')
  })
})
