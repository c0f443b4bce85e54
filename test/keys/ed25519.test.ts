import { generateKeyPairSync, sign as opensslSign } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { fromHex, hex } from '../../base/bytes.ts'
import { checkPublicKey, publicKeyOf, signWithSeed, verifySignature } from '../../keys/ed25519.ts'
import type { PublicKey } from '../../keys/types.ts'
import { codeOf } from '../codes.ts'

/** The vectors are data with licences of their own, kept in `shared/vectors` beside the repository. */
const VECTORS = join(import.meta.dirname, '../../../shared/vectors')
const load = <T>(path: string): T => JSON.parse(readFileSync(join(VECTORS, path), 'utf8')) as T
const itWith = (path: string) =>
  existsSync(join(VECTORS, path))
    ? it
    : (name: string, _: () => void) => it.skip(`${name} (no ${path} beside the repository)`)

/** The whole rule, as a root chain applies it: the key is checked once, then the signature. */
function accepts(key: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  let checked: PublicKey
  try {
    checked = checkPublicKey(key)
  } catch {
    return false
  }
  return verifySignature(checked, message, signature)
}

describe('A22 C10 the signature rule against vectors of others', () => {
  itWith('wycheproof/ed25519_test.json')('Wycheproof: 151 of 151 as stated', () => {
    interface Group {
      publicKey: { pk: string }
      tests: { tcId: number; msg: string; sig: string; result: string }[]
    }
    const { testGroups } = load<{ testGroups: Group[] }>('wycheproof/ed25519_test.json')
    const wrong: number[] = []
    let tried = 0
    for (const { publicKey, tests } of testGroups)
      for (const { tcId, msg, sig, result } of tests) {
        tried++
        if (accepts(fromHex(publicKey.pk), fromHex(msg), fromHex(sig)) !== (result === 'valid')) wrong.push(tcId)
      }
    expect({ tried, wrong }).toEqual({ tried: 151, wrong: [] })
  })

  itWith('wycheproof/ed25519_test.json')(
    'RFC 8032 section 7.1 TEST 1024, whose long message is Wycheproof case 83',
    () => {
      interface Test {
        tcId: number
        msg: string
        sig: string
      }
      const { testGroups } = load<{ testGroups: { publicKey: { pk: string }; tests: Test[] }[] }>(
        'wycheproof/ed25519_test.json',
      )
      const group = testGroups.find(({ tests }) => tests.some(({ tcId }) => tcId === 83))
      const test = group?.tests.find(({ tcId }) => tcId === 83)
      const seed = fromHex('f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5')
      expect(publicKeyOf(seed)).toBe(group?.publicKey.pk)
      expect(test?.msg).toHaveLength(2 * 1023)
      expect(hex(signWithSeed(seed, fromHex(test?.msg ?? '')))).toBe(test?.sig)
    },
  )

  itWith('speccheck/cases.json')('speccheck: 0 of 12 accepted', () => {
    const cases = load<{ message: string; pub_key: string; signature: string }[]>('speccheck/cases.json')
    const accepted = cases.filter((c) => accepts(fromHex(c.pub_key), fromHex(c.message), fromHex(c.signature)))
    expect({ tried: cases.length, accepted: accepted.length }).toEqual({ tried: 12, accepted: 0 })
  })

  itWith('cctv/ed25519vectors.json')('CCTV: exactly the 1 ordinary vector of 914 accepted', () => {
    const all = load<{ key: string; sig: string; msg: string; flags: string[] | null }[]>('cctv/ed25519vectors.json')
    const accepted = all.filter((c) => accepts(fromHex(c.key), Buffer.from(c.msg), fromHex(c.sig)))
    expect({ tried: all.length, accepted: accepted.length }).toEqual({ tried: 914, accepted: 1 })
    expect(accepted[0]?.flags ?? []).toEqual([])
  })
})

describe('RFC 8032 section 7.1', () => {
  // Secret key, public key, message, signature.
  const rows = [
    [
      '9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60',
      'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a',
      '',
      'e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b',
    ],
    [
      '4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb',
      '3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c',
      '72',
      '92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00',
    ],
    [
      'c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7',
      'fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025',
      'af82',
      '6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a',
    ],
    [
      '833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42',
      'ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf',
      'ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f',
      'dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704',
    ],
  ] as const
  it.each(rows)('key %s', (seed, key, message, signature) => {
    expect(publicKeyOf(fromHex(seed))).toBe(key)
    expect(hex(signWithSeed(fromHex(seed), fromHex(message)))).toBe(signature)
    expect(accepts(fromHex(key), fromHex(message), fromHex(signature))).toBe(true)
  })
})

describe('A22 odd keys and signatures', () => {
  const seed = new Uint8Array(32).fill(7)
  const message = Buffer.from('a statement')

  it('refuses the one signature that OpenSSL takes for any message under a small-order key', () => {
    // The identity as key and as R, S = 0: the equation holds whatever the message is.
    const identity = new Uint8Array(32)
    identity[0] = 1
    const forged = new Uint8Array(64)
    forged[0] = 1
    expect(codeOf(() => checkPublicKey(identity))).toBe('KEY_INVALID')
    // Even a key that was never checked does not get past the rule.
    for (const text of ['pay', 'me'])
      expect(verifySignature(hex(identity) as PublicKey, Buffer.from(text), forged)).toBe(false)
  })

  it.each([
    ['31 bytes', '00'.repeat(31)],
    ['33 bytes', '00'.repeat(33)],
    ['order 4: y = 0', '00'.repeat(32)],
    ['order 2: y = -1', `ec${'ff'.repeat(30)}7f`],
    ['order 8', 'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a'],
    ['y = p, not canonical', `ed${'ff'.repeat(30)}7f`],
    ['not on the curve', `02${'00'.repeat(31)}`],
    ['x = 0 with a sign', `01${'00'.repeat(30)}80`],
    ['a torsion part', 'cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d'],
  ])('refuses a key of %s', (_, text) => {
    expect(codeOf(() => checkPublicKey(fromHex(text)))).toBe('KEY_INVALID')
  })

  it('refuses every changed bit of a signature, and every other length', () => {
    const key = publicKeyOf(seed)
    const signature = signWithSeed(seed, message)
    expect(verifySignature(key, message, signature)).toBe(true)
    for (let bit = 0; bit < 512; bit++) {
      const changed = signature.slice()
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      expect(verifySignature(key, message, changed), `bit ${bit}`).toBe(false)
    }
    for (const length of [0, 32, 63]) expect(verifySignature(key, message, signature.slice(0, length))).toBe(false)
    expect(verifySignature(key, message, Buffer.concat([signature, Buffer.alloc(1)]))).toBe(false)
  })

  it('accepts honest signatures made by OpenSSL and by us, over any message', () => {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const raw = new Uint8Array(publicKey.export({ format: 'der', type: 'spki' }).subarray(12))
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 200 }),
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        (bytes, other) => {
          expect(accepts(raw, bytes, opensslSign(null, bytes, privateKey))).toBe(true)
          expect(accepts(fromHex(publicKeyOf(other)), bytes, signWithSeed(other, bytes))).toBe(true)
          expect(verifySignature(publicKeyOf(other), bytes, opensslSign(null, bytes, privateKey))).toBe(false)
        },
      ),
      { numRuns: 50 },
    )
  })
})
