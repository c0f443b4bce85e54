import { describe, expect, it, vi } from 'vitest'
import * as strictJson from '../../base/strict-json.ts'
import { pae } from '../../keys/dsse.ts'
import { publicKeyOf, signWithSeed } from '../../keys/ed25519.ts'
import { parseRoot, walkRoots } from '../../keys/root.ts'
import { addSignature, signStatement } from '../../keys/statement.ts'
import { verifyEnvelope } from '../../keys/threshold.ts'
import type { Envelope, Signer } from '../../keys/types.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { key, secondSignature, signedRoot, signer } from './helpers.ts'

const TYPE = 'application/vnd.bistable.release.v1+json'
const payload = new TextEncoder().encode('{"not":"parsed"}')
const sign = (by: readonly number[], type = TYPE) => signStatement(type, payload, by.map(signer))

/** Two of the release keys 11, 12, 13; key 12 was listed by version 1 only. */
async function roots() {
  const before = { release: [11, 12], releaseThreshold: 2 }
  const after = { version: 2, release: [11, 13], releaseThreshold: 2 }
  return walkRoots([await signedRoot(before, [1, 2]), await signedRoot(after, [1, 2])])
}

describe('verifyEnvelope', () => {
  it('accepts a threshold of different current keys, and names them', async () => {
    expect(verifyEnvelope(await sign([11, 13]), 'release', await roots())).toEqual([key(11), key(13)])
  })

  it('A1: refuses what nobody, a stranger or another role signed', async () => {
    const trusted = await roots()
    for (const [by, code] of [
      [[], 'SIGNATURE_THRESHOLD'],
      [[99], 'SIGNATURE_UNKNOWN'],
      [[21], 'SIGNATURE_UNKNOWN'],
      [[1, 2], 'SIGNATURE_UNKNOWN'],
      [[11, 13, 99], 'SIGNATURE_UNKNOWN'],
    ] as const) {
      const envelope = await sign(by)
      expect(codeOf(() => verifyEnvelope(envelope, 'release', trusted))).toBe(code)
    }
  })

  it('A1: refuses signatures made for another payload or payload type', async () => {
    const trusted = await roots()
    const other = await sign([11, 13], 'application/vnd.bistable.freshness.v1+json')
    const changed = { ...(await sign([11, 13])), payload: new TextEncoder().encode('{"not":"signed"}') }
    expect(codeOf(() => verifyEnvelope({ ...other, payloadType: TYPE }, 'release', trusted))).toBe('SIGNATURE_UNKNOWN')
    expect(codeOf(() => verifyEnvelope(changed, 'release', trusted))).toBe('SIGNATURE_UNKNOWN')
  })

  it('A1: gives no payload byte to the parser', async () => {
    const trusted = await roots()
    const parser = vi.spyOn(strictJson, 'parseStrictJson')
    for (const by of [[], [99], [11, 13]]) {
      const envelope = await sign(by)
      codeOf(() => verifyEnvelope(envelope, 'release', trusted))
    }
    expect(parser).not.toHaveBeenCalled()
    // The spy does see the parser when it runs.
    codeOf(() => parseRoot(payload))
    expect(parser).toHaveBeenCalledTimes(1)
    parser.mockRestore()
  })

  it('A11: refuses one signature too few', async () => {
    const trusted = await roots()
    const envelope = await sign([11])
    expect(codeOf(() => verifyEnvelope(envelope, 'release', trusted))).toBe('SIGNATURE_THRESHOLD')
  })

  it('A13: knows a revoked key but does not count it', async () => {
    const trusted = await roots()
    const short = await sign([11, 12])
    expect(codeOf(() => verifyEnvelope(short, 'release', trusted))).toBe('SIGNATURE_THRESHOLD')
    expect(verifyEnvelope(await sign([11, 12, 13]), 'release', trusted)).toEqual([key(11), key(13)])
  })

  it('A20: counts keys, not signatures', async () => {
    // Ed25519 as the RFC has it is deterministic; a key's owner can still make a second, different signature by
    // choosing another nonce prefix. Here: the expanded key with a changed prefix.
    const trusted = await roots()
    const message = pae(TYPE, payload)
    const signatures = [signWithSeed(new Uint8Array(32).fill(11), message), secondSignature(11, message)]
    const envelope: Envelope = { payloadType: TYPE, payload, signatures: signatures.sort(Buffer.compare) }
    const alone = walkRoots([await signedRoot({ release: [11] }, [1, 2])])
    expect(verifyEnvelope(envelope, 'release', alone)).toEqual([key(11)])
    expect(codeOf(() => verifyEnvelope(envelope, 'release', trusted))).toBe('SIGNATURE_THRESHOLD')
  })
})

describe('signing', () => {
  it('collects signatures one by one, in any order, to the same bytes', async () => {
    const once = await sign([11, 13])
    const apart = await addSignature(await addSignature(await sign([]), signer(13)), signer(11))
    expect(apart).toEqual(once)
  })

  it('refuses a second signature by the same key', async () => {
    expect(await codeOfAsync(() => sign([11, 11]))).toBe('SIGNATURE_PRESENT')
  })

  it.each<[string, (bytes: Uint8Array) => Uint8Array]>([
    ['garbage', () => new Uint8Array(64)],
    ['nothing', () => new Uint8Array()],
    ['a signature by another key', (bytes) => signWithSeed(new Uint8Array(32).fill(12), bytes)],
    ['a signature over other bytes', (bytes) => signWithSeed(new Uint8Array(32).fill(11), bytes.subarray(1))],
    ['65 bytes', (bytes) => Buffer.concat([signWithSeed(new Uint8Array(32).fill(11), bytes), Buffer.alloc(1)])],
  ])('refuses a signer that returns %s', async (_, answer) => {
    const bad: Signer = {
      publicKey: publicKeyOf(new Uint8Array(32).fill(11)),
      describe: 'bad',
      sign: async (b) => answer(b),
    }
    expect(await codeOfAsync(() => signStatement(TYPE, payload, [bad]))).toBe('SIGNATURE_REFUSED')
  })

  it('hands a signer the exact bytes, and never more than 4096', async () => {
    const seen: Uint8Array[] = []
    const sign = (bytes: Uint8Array) => {
      seen.push(bytes)
      return signer(11).sign(bytes)
    }
    const spy: Signer = { ...signer(11), sign }
    await signStatement(TYPE, payload, [spy])
    expect(seen).toEqual([pae(TYPE, payload)])
    expect(await codeOfAsync(() => signStatement(TYPE, new Uint8Array(4096), [spy]))).toBe('STATEMENT_TOO_LARGE')
    expect(seen).toHaveLength(1)
  })
})
