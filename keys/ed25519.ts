import { createPublicKey, verify as opensslVerify } from 'node:crypto'
import * as noble from '@noble/ed25519'
import { sha512 } from '@noble/hashes/sha2.js'
import { compareBytes, fromHex, hex } from '../base/bytes.ts'
import { keyErrors } from './errors.ts'
import type { PublicKey } from './types.ts'

/**
 * The one signature rule, used for every signature of this project.
 *
 * Verifiers in use disagree about odd keys and signatures: some accept one constant signature for any message under a
 * small-order key. Accepted here is only what all of them accept and what no honest signer needs to stretch.
 */

noble.hashes.sha512 = sha512

const SPKI_PREFIX = fromHex('302a300506032b6570032100')

/** Takes 32 bytes as a public key: a canonical point, not of small order, torsion-free. @throws KEY_INVALID */
export function checkPublicKey(bytes: Uint8Array): PublicKey {
  if (bytes.length !== 32) throw keyErrors.KEY_INVALID(`a public key has 32 bytes, this has ${bytes.length}`)
  const point = canonicalPoint(bytes)
  if (point === undefined) throw keyErrors.KEY_INVALID(`${hex(bytes)} is not the canonical encoding of a curve point`)
  if (point.isSmallOrder()) throw keyErrors.KEY_INVALID(`${hex(bytes)} is a point of small order`)
  if (!point.isTorsionFree()) throw keyErrors.KEY_INVALID(`${hex(bytes)} is not in the prime-order group`)
  return hex(bytes) as PublicKey
}

/**
 * True when `signature` has 64 bytes, its R is canonical and not of small order, and both node:crypto and noble
 * (RFC 8032, not ZIP-215) accept it. Never throws on account of the signature.
 */
export function verifySignature(key: PublicKey, message: Uint8Array, signature: Uint8Array): boolean {
  if (signature.length !== 64) return false
  const raw = fromHex(key)
  // The native check first: it refuses most wrong signatures at a twentieth of the cost.
  const spki = createPublicKey({ key: Buffer.from(spkiOf(key)), format: 'der', type: 'spki' })
  if (!opensslVerify(null, message, spki, signature)) return false
  const r = canonicalPoint(signature.subarray(0, 32))
  if (r === undefined || r.isSmallOrder()) return false
  return noble.verify(signature, message, raw, { zip215: false })
}

/** The public key as SubjectPublicKeyInfo (RFC 8410), DER: what OpenSSL and key services speak. */
export function spkiOf(key: PublicKey): Uint8Array {
  return new Uint8Array(Buffer.concat([SPKI_PREFIX, fromHex(key)]))
}

/** Takes a DER SubjectPublicKeyInfo of exactly an Ed25519 key. @throws KEY_INVALID */
export function publicKeyFromSpki(der: Uint8Array): PublicKey {
  if (compareBytes(der.subarray(0, SPKI_PREFIX.length), SPKI_PREFIX) !== 0)
    throw keyErrors.KEY_INVALID('the public key is not an Ed25519 SubjectPublicKeyInfo')
  return checkPublicKey(der.subarray(SPKI_PREFIX.length))
}

/** The public key of a 32-byte RFC 8032 seed. */
export function publicKeyOf(seed: Uint8Array): PublicKey {
  return hex(noble.getPublicKey(seed)) as PublicKey
}

/** The deterministic RFC 8032 signature, 64 bytes. */
export function signWithSeed(seed: Uint8Array, message: Uint8Array): Uint8Array {
  return noble.sign(message, seed)
}

function canonicalPoint(bytes: Uint8Array): noble.Point | undefined {
  try {
    return noble.Point.fromBytes(bytes, false)
  } catch {
    return undefined
  }
}
