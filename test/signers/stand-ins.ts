import {
  createHash,
  createHmac,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  timingSafeEqual,
} from 'node:crypto'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'

/**
 * Local stand-ins for key services. They enforce what the services document about Ed25519 keys and refuse the rest, and
 * check credentials by code of their own. What they cannot prove is that the services do what their documents say.
 */

export const CREDENTIALS = { id: 'AKIDEXAMPLE', secret: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY' }
export const TOKEN = 'ya29.a-token_of/letters='

export interface StandIn {
  readonly url: string
  readonly publicKey: KeyObject
  /** Operations that were answered. */
  readonly served: string[]
  /** Changes the next answers: status and body. */
  answer: ((body: string) => readonly [number, string]) | undefined
  close(): Promise<void>
}

type Handler = (request: IncomingMessage, body: string, key: KeyObject) => readonly [number, object]

export const awsStandIn = (): Promise<StandIn> => standIn(aws)
export const gcpStandIn = (): Promise<StandIn> => standIn(gcp)

async function standIn(handler: Handler): Promise<StandIn> {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  const served: string[] = []
  const server: Server = createServer(async (request, response) => {
    let body = ''
    for await (const piece of request) body += piece
    const [status, answer] = handler(request, body, privateKey)
    if (status === 200) served.push(String(request.headers['x-amz-target'] ?? request.url))
    const [shown, text] = self.answer?.(JSON.stringify(answer)) ?? [status, JSON.stringify(answer)]
    response.writeHead(shown, shown >= 300 && shown < 400 ? { location: self.url } : {}).end(text)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const self: StandIn = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    publicKey,
    served,
    answer: undefined,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return self
}

function aws(request: IncomingMessage, body: string, key: KeyObject): readonly [number, object] {
  const failure = (type: string, message: string) => [400, { __type: type, message }] as const
  if (request.method !== 'POST' || request.url !== '/') return failure('UnknownOperationException', 'POST / only')
  if (request.headers['content-type'] !== 'application/x-amz-json-1.1')
    return failure('SerializationException', 'content type')
  const refused = signatureV4Failure(request, body)
  if (refused !== undefined) return failure('InvalidSignatureException', refused)
  const fields = JSON.parse(body)
  if (fields.KeyId !== 'alias/release') return failure('NotFoundException', 'no such key')
  if (request.headers['x-amz-target'] === 'TrentService.GetPublicKey') {
    const spki = createPublicKey(key).export({ format: 'der', type: 'spki' })
    const common = { KeySpec: 'ECC_NIST_EDWARDS25519', KeyUsage: 'SIGN_VERIFY' }
    return [200, { ...common, PublicKey: spki.toString('base64'), SigningAlgorithms: ['ED25519_SHA_512'] }]
  }
  if (request.headers['x-amz-target'] !== 'TrentService.Sign') return failure('UnknownOperationException', 'target')
  if (fields.SigningAlgorithm !== 'ED25519_SHA_512' || fields.MessageType !== 'RAW')
    return failure('ValidationException', 'ED25519_SHA_512 wants MessageType RAW')
  const message = Buffer.from(fields.Message, 'base64')
  if (message.length < 1 || message.length > 4096) return failure('ValidationException', 'Message: 1 to 4096 bytes')
  const Signature = sign(null, message, key).toString('base64')
  return [200, { KeyId: fields.KeyId, Signature, SigningAlgorithm: fields.SigningAlgorithm }]
}

/** Signature Version 4 as a server checks it: from the request as it came and the Authorization header's own lists. */
function signatureV4Failure(request: IncomingMessage, body: string): string | undefined {
  const header = String(request.headers.authorization)
  const match =
    /^AWS4-HMAC-SHA256 Credential=(\w+)\/(\d{8})\/([\w-]+)\/(\w+)\/aws4_request, SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})$/.exec(
      header,
    )
  if (match === null) return 'no Authorization'
  const [, id, day = '', region = '', service = '', signed = '', signature = ''] = match
  if (id !== CREDENTIALS.id) return 'unknown access key'
  if (region !== 'eu-central-1' || service !== 'kms') return 'wrong scope'
  const time = String(request.headers['x-amz-date'])
  if (!time.startsWith(`${day}T`)) return 'date'
  const skew = Date.now() - Date.parse(time.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'))
  if (!(Math.abs(skew) < 300_000)) return 'clock'
  const names = signed.split(';')
  for (const wanted of ['host', 'x-amz-date', 'x-amz-target', 'content-type'])
    if (!names.includes(wanted)) return `${wanted} is not signed`
  const hash = (text: string) => createHash('sha256').update(text).digest('hex')
  const lines = names.map((name) => `${name}:${String(request.headers[name])}\n`).join('')
  const canonical = `${request.method}\n${request.url}\n\n${lines}\n${signed}\n${hash(body)}`
  const mac = (key: string | Buffer, text: string) => createHmac('sha256', key).update(text).digest()
  const secret = mac(mac(mac(mac(`AWS4${CREDENTIALS.secret}`, day), region), service), 'aws4_request')
  const expected = mac(
    secret,
    `AWS4-HMAC-SHA256\n${time}\n${day}/${region}/${service}/aws4_request\n${hash(canonical)}`,
  )
  return timingSafeEqual(expected, Buffer.from(signature, 'hex')) ? undefined : 'the signature does not match'
}

export const GCP_KEY = 'projects/p/locations/global/keyRings/r/cryptoKeys/release/cryptoKeyVersions/1'

function gcp(request: IncomingMessage, body: string, key: KeyObject): readonly [number, object] {
  const failure = (code: number, status: string) => [code, { error: { code, status } }] as const
  if (request.headers.authorization !== `Bearer ${TOKEN}`) return failure(401, 'UNAUTHENTICATED')
  if (request.method === 'GET' && request.url === `/v1/${GCP_KEY}/publicKey`) {
    const pem = createPublicKey(key).export({ format: 'pem', type: 'spki' })
    return [200, { pem, algorithm: 'EC_SIGN_ED25519', name: GCP_KEY, protectionLevel: 'HSM' }]
  }
  if (request.method !== 'POST' || request.url !== `/v1/${GCP_KEY}:asymmetricSign`) return failure(404, 'NOT_FOUND')
  const fields = JSON.parse(body)
  // Ed25519 keys sign data; a digest is an error.
  if (fields.digest !== undefined || typeof fields.data !== 'string') return failure(400, 'INVALID_ARGUMENT')
  const data = Buffer.from(fields.data, 'base64')
  if (data.length < 1 || data.length > 4096) return failure(400, 'INVALID_ARGUMENT')
  return [200, { signature: sign(null, data, key).toString('base64'), name: GCP_KEY, protectionLevel: 'HSM' }]
}
