import { createHash, createHmac } from 'node:crypto'
import { compareUtf8 } from '../../base/bytes.ts'
import { publicKeyFromSpki } from '../ed25519.ts'
import { keyErrors } from '../errors.ts'
import type { PublicKey } from '../types.ts'
import { base64Field, endpoint, type HttpRequest } from './http.ts'

/**
 * AWS KMS: its JSON protocol (`Sign`, `GetPublicKey`) and Signature Version 4, as AWS documents them. Pure.
 *
 * The key is an ECC_NIST_EDWARDS25519 one; messages go RAW, at most 4096 bytes, with ED25519_SHA_512 (RFC 8032; the
 * other algorithm signs a digest, which plain verifiers refuse).
 */

export interface AwsCredentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
}

export interface AwsPlace {
  readonly region: string
  readonly url: URL
}

type Environment = Readonly<Record<string, string | undefined>>

/** From AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. @throws SIGNER_MISSING */
export function awsCredentials(environment: Environment): AwsCredentials {
  const accessKeyId = credential(environment, 'AWS_ACCESS_KEY_ID')
  const secretAccessKey = credential(environment, 'AWS_SECRET_ACCESS_KEY')
  const sessionToken = credential(environment, 'AWS_SESSION_TOKEN')
  if (!accessKeyId || !secretAccessKey)
    throw keyErrors.SIGNER_MISSING('AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set', {
      next: 'Set them, for example with \'eval "$(aws configure export-credentials --format env)"\'.',
    })
  return { accessKeyId, secretAccessKey, ...(sessionToken ? { sessionToken } : {}) }
}

/** Refused without its value: whoever complains about a header that cannot be sent quotes it, token and all. */
function credential(environment: Environment, name: string): string | undefined {
  const value = environment[name]?.trim()
  if (value !== undefined && !/^[!-~]*$/.test(value))
    throw keyErrors.SIGNER_MISSING(`${name} holds a space, a line break or the like`, { next: 'Set it in one line.' })
  return value
}

/** The region is that of an ARN, else AWS_REGION or AWS_DEFAULT_REGION. @throws SIGNER_MISSING */
export function awsPlace(keyId: string, environment: Environment): AwsPlace {
  const region =
    /^arn:[\w-]+:kms:([\w-]+):/.exec(keyId)?.[1] || environment['AWS_REGION'] || environment['AWS_DEFAULT_REGION']
  if (region === undefined || !/^[a-z0-9-]{1,64}$/.test(region))
    throw keyErrors.SIGNER_MISSING('the key id names no region, and AWS_REGION is not set')
  const override = environment['AWS_ENDPOINT_URL_KMS'] || environment['AWS_ENDPOINT_URL']
  return { region, url: endpoint(override, `https://kms.${region}.amazonaws.com/`) }
}

/** @param message the exact bytes to sign, at most 4096 */
export function awsSignRequest(keyId: string, message: Uint8Array, place: AwsPlace): HttpRequest {
  return kmsRequest('Sign', place, {
    KeyId: keyId,
    Message: Buffer.from(message).toString('base64'),
    MessageType: 'RAW',
    SigningAlgorithm: 'ED25519_SHA_512',
  })
}

export function awsPublicKeyRequest(keyId: string, place: AwsPlace): HttpRequest {
  return kmsRequest('GetPublicKey', place, { KeyId: keyId })
}

/** @throws SIGNER_FAILED */
export function awsSignature(answer: Readonly<Record<string, unknown>>): Uint8Array {
  return base64Field(answer, 'Signature')
}

/** @throws SIGNER_FAILED, KEY_INVALID */
export function awsPublicKey(answer: Readonly<Record<string, unknown>>): PublicKey {
  return publicKeyFromSpki(base64Field(answer, 'PublicKey'))
}

function kmsRequest(operation: string, { url }: AwsPlace, body: object): HttpRequest {
  return {
    method: 'POST',
    url,
    headers: { 'content-type': 'application/x-amz-json-1.1', 'x-amz-target': `TrentService.${operation}` },
    body: JSON.stringify(body),
  }
}

/**
 * Adds Signature Version 4 to a request without a query. Every header that is given is signed.
 * @param service "kms"
 */
export function signV4(
  request: HttpRequest,
  credentials: AwsCredentials,
  scope: { readonly region: string; readonly service: string },
  now: Date,
): HttpRequest {
  const time = now.toISOString().replace(/[-:]|\.\d{3}/g, '')
  const day = time.slice(0, 8)
  const headers: Record<string, string> = { ...request.headers, host: request.url.host, 'x-amz-date': time }
  if (credentials.sessionToken !== undefined) headers['x-amz-security-token'] = credentials.sessionToken
  const names = Object.keys(headers).sort(compareUtf8)
  const canonical = [
    request.method,
    request.url.pathname,
    '',
    ...names.map((name) => `${name}:${headers[name]?.trim()}`),
    '',
    names.join(';'),
    sha256(request.body),
  ].join('\n')
  const credentialScope = `${day}/${scope.region}/${scope.service}/aws4_request`
  const toSign = ['AWS4-HMAC-SHA256', time, credentialScope, sha256(canonical)].join('\n')
  let key: Uint8Array = Buffer.from(`AWS4${credentials.secretAccessKey}`)
  for (const part of [day, scope.region, scope.service, 'aws4_request']) key = hmac(key, part)
  const signature = hmac(key, toSign).toString('hex')
  const authorization = `AWS4-HMAC-SHA256 Credential=${credentials.accessKeyId}/${credentialScope}, SignedHeaders=${names.join(';')}, Signature=${signature}`
  return { ...request, headers: { ...headers, authorization } }
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex')
const hmac = (key: Uint8Array, text: string): Buffer => createHmac('sha256', key).update(text).digest()
