import { publicKeyFromSpki } from '../ed25519.ts'
import { keyErrors } from '../errors.ts'
import type { PublicKey } from '../types.ts'
import { base64Field, endpoint, type HttpRequest } from './http.ts'

/**
 * Google Cloud KMS: `asymmetricSign` and `publicKey` of its REST interface, version 1. Pure.
 *
 * The key version is an EC_SIGN_ED25519 one, which signs data and not a digest.
 */

export interface GcpPlace {
  readonly url: URL
  /** An OAuth access token. */
  readonly token: string
}

/** CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS, as gcloud has it, or Google's own. @throws SIGNER_MISSING */
export function gcpEndpoint(environment: Readonly<Record<string, string | undefined>>): URL {
  return endpoint(environment['CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS'], 'https://cloudkms.googleapis.com/')
}

/** @param name projects/…/cryptoKeyVersions/N */
export function gcpSignRequest(name: string, message: Uint8Array, { url, token }: GcpPlace): HttpRequest {
  return {
    method: 'POST',
    url: new URL(`v1/${name}:asymmetricSign`, url),
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ data: Buffer.from(message).toString('base64') }),
  }
}

export function gcpPublicKeyRequest(name: string, { url, token }: GcpPlace): HttpRequest {
  return {
    method: 'GET',
    url: new URL(`v1/${name}/publicKey`, url),
    headers: { authorization: `Bearer ${token}` },
    body: '',
  }
}

/** @throws SIGNER_FAILED */
export function gcpSignature(answer: Readonly<Record<string, unknown>>): Uint8Array {
  return base64Field(answer, 'signature')
}

/** @throws SIGNER_FAILED, KEY_INVALID */
export function gcpPublicKey(answer: Readonly<Record<string, unknown>>): PublicKey {
  if (answer['algorithm'] !== 'EC_SIGN_ED25519')
    throw keyErrors.SIGNER_FAILED(
      `the key is of algorithm ${JSON.stringify(answer['algorithm'])}, wanted EC_SIGN_ED25519`,
    )
  const pem = answer['pem']
  const [, base64] =
    /^-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=\n]+)-----END PUBLIC KEY-----\n?$/.exec(String(pem)) ?? []
  if (base64 === undefined) throw keyErrors.SIGNER_FAILED('the answer has no PEM public key')
  return publicKeyFromSpki(new Uint8Array(Buffer.from(base64, 'base64')))
}
