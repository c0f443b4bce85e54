import { createHash } from 'node:crypto'
import { Point } from '@noble/ed25519'
import { fromHex } from '../../base/bytes.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { publicKeyOf, signWithSeed } from '../../keys/ed25519.ts'
import { encodeRoot, ROOT_PAYLOAD_TYPE } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import type { PublicKey, Role, Root, Signer } from '../../keys/types.ts'

/** Test keys are named by a number from 1 to 255: the byte that fills their seed. */
const seed = (n: number) => new Uint8Array(32).fill(n)
export const key = (n: number): PublicKey => publicKeyOf(seed(n))
export const signer = (n: number): Signer => ({
  publicKey: key(n),
  describe: `test key ${n}`,
  sign: async (bytes) => signWithSeed(seed(n), bytes),
})

export interface RootPlan {
  readonly version?: number
  readonly product?: string
  readonly epoch?: number
  readonly root?: readonly number[]
  readonly threshold?: number
  readonly release?: readonly number[]
  readonly releaseThreshold?: number
  readonly fleet?: readonly number[]
  readonly issued?: string
}

/** Root keys 1, 2, 3 (two must sign), release key 11, fleet key 21, unless the plan says otherwise. */
export function rootOf(plan: RootPlan = {}): Root {
  const rule = (threshold: number, numbers: readonly number[]) => ({ threshold, keys: numbers.map(key) })
  const roles: Record<Role, { threshold: number; keys: PublicKey[] }> = {
    root: rule(plan.threshold ?? 2, plan.root ?? [1, 2, 3]),
    release: rule(plan.releaseThreshold ?? 1, plan.release ?? [11]),
    fleet: rule(1, plan.fleet ?? [21]),
  }
  return {
    type: 'root',
    product: plan.product ?? 'demo',
    version: plan.version ?? 1,
    epoch: plan.epoch ?? 0,
    issued: plan.issued ?? '2026-11-21T00:00:00Z',
    roles,
  }
}

/** A root envelope signed by the test keys named. */
export async function signedRoot(plan: RootPlan, by: readonly number[]): Promise<Uint8Array> {
  return encodeEnvelope(await signStatement(ROOT_PAYLOAD_TYPE, encodeRoot(rootOf(plan)), by.map(signer)))
}

/** Another valid signature by the same key: RFC 8032 5.1.6 with a nonce of our own choice. */
export function secondSignature(n: number, message: Uint8Array): Uint8Array {
  const L = 2n ** 252n + 27742317777372353535851937790883648493n
  const sha = (...parts: Uint8Array[]) => createHash('sha512').update(Buffer.concat(parts)).digest()
  const little = (bytes: Uint8Array) => BigInt(`0x${Buffer.from(bytes).reverse().toString('hex') || '0'}`)
  const expanded = sha(seed(n))
  expanded[0] = (expanded[0] ?? 0) & 248
  expanded[31] = ((expanded[31] ?? 0) & 127) | 64
  const nonce = little(sha(Buffer.from('another nonce'), message)) % L
  const r = Point.BASE.multiply(nonce).toBytes()
  const k = little(sha(r, fromHex(key(n)), message)) % L
  const s = (nonce + k * little(expanded.subarray(0, 32))) % L
  return Uint8Array.from([...r, ...Buffer.from(s.toString(16).padStart(64, '0'), 'hex').reverse()])
}
