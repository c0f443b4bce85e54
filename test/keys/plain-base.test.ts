import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import * as noble from '@noble/ed25519'
import { sha512 } from '@noble/hashes/sha2.js'
import { expect, it } from 'vitest'
import { fromHex, hex } from '../../base/bytes.ts'
import { withoutBaseTable } from '../../scripts/plain-base.mjs'
import { noise, scratch } from '../bundle/tools.ts'

/** The device's copy of the library, changed by the build, decides like the one that was published. */

const VECTORS = join(import.meta.dirname, '../../../shared/vectors')
const source = readFileSync(createRequire(import.meta.url).resolve('@noble/ed25519'), 'utf8')

async function shipped(): Promise<typeof noble> {
  const path = join(scratch(), 'plain-base.mjs')
  writeFileSync(path, withoutBaseTable(source))
  const plain = (await import(pathToFileURL(path).href)) as typeof noble
  plain.hashes.sha512 = sha512
  return plain
}

/** What a library says of a signature; a refusal by an error is a no. */
function verdict(library: typeof noble, signature: Uint8Array, message: Uint8Array, key: Uint8Array): boolean {
  try {
    return library.verify(signature, message, key, { zip215: false })
  } catch {
    return false
  }
}

it('C10 verifies, signs and makes keys as the library does', async () => {
  noble.hashes.sha512 = sha512
  const plain = await shipped()
  for (let i = 0; i < 12; i++) {
    const seed = new Uint8Array(noise(32, `seed ${i}`))
    const message = new Uint8Array(noise(i * 40, `message ${i}`))
    const key = noble.getPublicKey(seed)
    const signature = noble.sign(message, seed)
    expect(hex(plain.getPublicKey(seed))).toBe(hex(key))
    expect(hex(plain.sign(message, seed))).toBe(hex(signature))
    expect(verdict(plain, signature, message, key)).toBe(true)
    for (const at of [0, 31, 32, 63]) {
      const wrong = signature.slice()
      wrong[at] = (wrong[at] ?? 0) ^ (1 << (i % 8))
      expect(verdict(plain, wrong, message, key), `${i} ${at}`).toBe(false)
    }
  }
})

it.skipIf(!existsSync(VECTORS))('C10 decides every vector of others as the library does', async () => {
  noble.hashes.sha512 = sha512
  const plain = await shipped()
  const load = (path: string) => JSON.parse(readFileSync(join(VECTORS, path), 'utf8'))
  interface Group {
    readonly publicKey: { readonly pk: string }
    readonly tests: readonly { readonly msg: string; readonly sig: string }[]
  }
  const wycheproof = (load('wycheproof/ed25519_test.json').testGroups as readonly Group[]).flatMap((group) =>
    group.tests.map(({ msg, sig }) => [sig, msg, group.publicKey.pk] as const),
  )
  const odd = (load('cctv/ed25519vectors.json') as readonly { key: string; sig: string; msg: string }[]).map(
    ({ key, sig, msg }) => [sig, Buffer.from(msg).toString('hex'), key] as const,
  )
  let accepted = 0
  for (const vector of [...wycheproof, ...odd]) {
    const [signature, message, key] = vector.map(fromHex) as [Uint8Array, Uint8Array, Uint8Array]
    const wanted = verdict(noble, signature, message, key)
    expect(verdict(plain, signature, message, key), vector.join(' ')).toBe(wanted)
    if (wanted) accepted++
  }
  expect(accepted).toBeGreaterThan(80)
})

it('another version of the library stops the build', () => {
  expect(() => withoutBaseTable(source.replace('return wNAF(n).p', 'return wNAF(n).q'))).toThrow('0 places, wanted 1')
  expect(() => withoutBaseTable(source + source)).toThrow('2 places, wanted 1')
})
