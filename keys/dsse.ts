import { compareBytes, KiB } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { keyErrors } from './errors.ts'
import type { Envelope } from './types.ts'

/** DSSE 1.0.2 (secure-systems-lab/dsse, protocol.md) in the one exact encoding of docs/format.md. */

/** Most bytes that may be under a signature: what AWS KMS signs raw. */
export const MAX_SIGNED_BYTES = 4096
export const MAX_ENVELOPE_BYTES = 16 * KiB

/** Pre-authentication encoding: the exact bytes that are signed. @throws STATEMENT_TOO_LARGE */
export function pae(payloadType: string, payload: Uint8Array): Uint8Array {
  const head = `DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.length} `
  const out = Buffer.concat([Buffer.from(head), payload])
  if (out.length > MAX_SIGNED_BYTES)
    throw keyErrors.STATEMENT_TOO_LARGE(`${out.length} bytes are to be signed, at most ${MAX_SIGNED_BYTES} may be`)
  return new Uint8Array(out)
}

/**
 * The one encoding of an envelope. It may carry no signature yet; such an envelope verifies under no rule.
 * @throws ENVELOPE_INVALID, ENVELOPE_TOO_LARGE, STATEMENT_TOO_LARGE
 */
export function encodeEnvelope(envelope: Envelope): Uint8Array {
  checkEnvelope(envelope)
  const text = JSON.stringify({
    payload: base64(envelope.payload),
    payloadType: envelope.payloadType,
    signatures: envelope.signatures.map((signature) => ({ sig: base64(signature) })),
  })
  const bytes = new Uint8Array(Buffer.from(`${text}\n`))
  if (bytes.length > MAX_ENVELOPE_BYTES)
    throw keyErrors.ENVELOPE_TOO_LARGE(`the envelope has ${bytes.length} bytes, at most ${MAX_ENVELOPE_BYTES} fit`)
  return bytes
}

/**
 * Reads an envelope and refuses every encoding but the one that `encodeEnvelope` writes. Nothing is verified yet:
 * the payload is bytes that must go to `verifyEnvelope` or `walkRoots` before anything looks into them.
 * @throws ENVELOPE_INVALID, ENVELOPE_TOO_LARGE, STATEMENT_TOO_LARGE
 */
export function decodeEnvelope(bytes: Uint8Array, limits: { readonly maxBytes?: number } = {}): Envelope {
  const maxBytes = Math.min(limits.maxBytes ?? MAX_ENVELOPE_BYTES, MAX_ENVELOPE_BYTES)
  if (bytes.length > maxBytes)
    throw keyErrors.ENVELOPE_TOO_LARGE(`the envelope has ${bytes.length} bytes, at most ${maxBytes} are read`)
  const envelope = fromJson(parse(bytes))
  if (compareBytes(encodeEnvelope(envelope), bytes) !== 0)
    throw keyErrors.ENVELOPE_INVALID('the envelope is not in its exact encoding')
  return envelope
}

function parse(bytes: Uint8Array): unknown {
  try {
    return parseStrictJson(bytes, { maxBytes: MAX_ENVELOPE_BYTES, maxDepth: 3 })
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw keyErrors.ENVELOPE_INVALID(`the envelope is not strict JSON: ${why}`, { cause })
  }
}

function fromJson(json: unknown): Envelope {
  const { payload, payloadType, signatures } = fields(json)
  if (typeof payload !== 'string' || typeof payloadType !== 'string' || !Array.isArray(signatures))
    throw keyErrors.ENVELOPE_INVALID('the envelope lacks payload, payloadType or signatures')
  return {
    payloadType,
    payload: fromBase64(payload),
    signatures: signatures.map((entry) => {
      const { sig } = fields(entry)
      if (typeof sig !== 'string') throw keyErrors.ENVELOPE_INVALID('an entry of signatures has no sig')
      return fromBase64(sig)
    }),
  }
}

function fields(json: unknown): Record<string, unknown> {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw keyErrors.ENVELOPE_INVALID('the envelope holds something else where an object was wanted')
  return json as Record<string, unknown>
}

function checkEnvelope(envelope: Envelope): void {
  // Printable ASCII without quote and backslash: one spelling in JSON, nothing to hide in a terminal.
  if (!/^[!#-[\]-~]{1,128}$/.test(envelope.payloadType))
    throw keyErrors.ENVELOPE_INVALID('the payload type is not 1 to 128 printable ASCII characters')
  pae(envelope.payloadType, envelope.payload)
  envelope.signatures.forEach((signature, i) => {
    if (signature.length !== 64)
      throw keyErrors.ENVELOPE_INVALID(`signature ${i} has ${signature.length} bytes, wanted 64`)
    const before = envelope.signatures[i - 1]
    if (before !== undefined && compareBytes(before, signature) >= 0)
      throw keyErrors.ENVELOPE_INVALID('signatures are not distinct and in ascending order')
  })
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64')
}

/** Lenient: what it lets through does not survive the comparison with the exact encoding. */
function fromBase64(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, 'base64'))
}
