import type { Brand } from '../base/bytes.ts'

/** An Ed25519 public key that passed `checkPublicKey`: 32 bytes, canonical, not of small order, torsion-free; as hex. */
export type PublicKey = Brand<string, 'ed25519-public-key'>

export type Role = 'root' | 'release' | 'fleet'

/**
 * DSSE 1.0.2 envelope in our one exact encoding: `JSON.stringify` of this object in this key order plus "\n",
 * standard base64 with padding, no key ids (a key id is only a hint; we have none to be confused by).
 */
export interface Envelope {
  readonly payloadType: string
  readonly payload: Uint8Array
  /** 64-byte signatures, distinct, in ascending byte order. */
  readonly signatures: readonly Uint8Array[]
}

export interface RoleRule {
  /** 1 <= threshold <= keys.length. */
  readonly threshold: number
  readonly keys: readonly PublicKey[]
}

/** The payload of a root statement, parsed and validated. */
export interface Root {
  readonly type: 'root'
  readonly product: string
  /** 1, 2, 3, … without gaps. */
  readonly version: number
  /** Rises to burn counters of a stolen release key. */
  readonly epoch: number
  /** ISO 8601, UTC, seconds: "2026-11-21T00:00:00Z". A hint. */
  readonly issued: string
  readonly roles: Readonly<Record<Role, RoleRule>>
}

/** A root chain that was walked and holds: what the device trusts. */
export interface TrustedRoots {
  /** Exact envelope bytes, versions 1..N or M..N. */
  readonly envelopes: readonly Uint8Array[]
  readonly current: Root
  /** Every key ever listed for each role in the walked chain (a signature by one of these is known, though it may no longer count). */
  readonly everListed: Readonly<Record<Role, ReadonlySet<PublicKey>>>
}

/** Gets at most 4096 exact bytes, returns 64. The caller verifies the result before writing it. */
export interface Signer {
  readonly publicKey: PublicKey
  readonly describe: string
  sign(bytes: Uint8Array): Promise<Uint8Array>
}
