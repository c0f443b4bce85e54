import { compareBytes } from '../base/bytes.ts'
import { pae } from './dsse.ts'
import { verifySignature } from './ed25519.ts'
import { keyErrors } from './errors.ts'
import type { Envelope, Signer } from './types.ts'

/**
 * Signs a new statement with each signer in turn (none: an envelope that waits for signatures).
 * @throws STATEMENT_TOO_LARGE, SIGNATURE_REFUSED, SIGNATURE_PRESENT
 */
export async function signStatement(
  payloadType: string,
  payload: Uint8Array,
  signers: readonly Signer[],
): Promise<Envelope> {
  let envelope: Envelope = { payloadType, payload, signatures: [] }
  for (const signer of signers) envelope = await addSignature(envelope, signer)
  return envelope
}

/**
 * Adds one signature; it is verified by our own rule before it is taken, whatever the signer says.
 * @throws SIGNATURE_REFUSED, SIGNATURE_PRESENT
 */
export async function addSignature(envelope: Envelope, signer: Signer): Promise<Envelope> {
  const message = pae(envelope.payloadType, envelope.payload)
  if (envelope.signatures.some((signature) => verifySignature(signer.publicKey, message, signature)))
    throw keyErrors.SIGNATURE_PRESENT(`${signer.describe} has signed this statement already`)
  const signature = await signer.sign(message)
  if (!verifySignature(signer.publicKey, message, signature))
    throw keyErrors.SIGNATURE_REFUSED(`what ${signer.describe} returned does not verify under ${signer.publicKey}`)
  return { ...envelope, signatures: [...envelope.signatures, signature].sort(compareBytes) }
}
