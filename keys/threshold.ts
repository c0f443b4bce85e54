import { pae } from './dsse.ts'
import { verifySignature } from './ed25519.ts'
import { keyErrors } from './errors.ts'
import type { Envelope, PublicKey, Role, TrustedRoots } from './types.ts'

/**
 * Verifies an envelope for a role: every signature present must be by a key that the walked roots list or once
 * listed for it, and at least a threshold of different keys of the newest root must have signed. The payload is not
 * looked into; the caller compares `payloadType` with the one it wants, then parses.
 * @returns the keys of the newest root that signed
 * @throws SIGNATURE_UNKNOWN, SIGNATURE_THRESHOLD
 */
export function verifyEnvelope(envelope: Envelope, role: Role, roots: TrustedRoots): readonly PublicKey[] {
  const rule = roots.current.roles[role]
  const candidates = new Set([...rule.keys, ...roots.everListed[role]])
  const { signers, unknown } = matchSignatures(envelope, candidates, { stopAtUnknown: true })
  if (unknown.length > 0) throw unknownSignature(`the ${role} keys of root 1 to ${roots.current.version}`)
  const counted = rule.keys.filter((key) => signers.has(key))
  if (counted.length < rule.threshold)
    throw keyErrors.SIGNATURE_THRESHOLD(
      `${counted.length} of the ${role} keys in root ${roots.current.version} signed, ${rule.threshold} must`,
      { details: { role, rootVersion: roots.current.version, signed: counted, threshold: rule.threshold } },
    )
  return counted
}

export interface Matched {
  readonly signers: ReadonlySet<PublicKey>
  /** Signatures that verify under none of the keys. */
  readonly unknown: readonly Uint8Array[]
}

/** Finds which of `keys` made which signature. The work is bounded by signatures times keys, both bounded by size. */
export function matchSignatures(
  envelope: Envelope,
  keys: Iterable<PublicKey>,
  options: { readonly stopAtUnknown?: boolean } = {},
): Matched {
  const message = pae(envelope.payloadType, envelope.payload)
  const candidates = [...keys]
  const signers = new Set<PublicKey>()
  const unknown: Uint8Array[] = []
  for (const signature of envelope.signatures) {
    const key = candidates.find((candidate) => verifySignature(candidate, message, signature))
    if (key !== undefined) signers.add(key)
    else unknown.push(signature)
    // A stranger's signature refuses the envelope; no need to spend time on the others.
    if (key === undefined && options.stopAtUnknown === true) break
  }
  return { signers, unknown }
}

export function unknownSignature(wanted: string): Error {
  return keyErrors.SIGNATURE_UNKNOWN(`a signature was made by none of ${wanted}`)
}
