import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { pae } from '../../keys/dsse.ts'
import { verifySignature } from '../../keys/ed25519.ts'
import { awsPlace, awsSignRequest, signV4 } from '../../keys/signers/aws.ts'
import { gcpEndpoint, gcpSignRequest } from '../../keys/signers/gcp.ts'
import { openSigner, publicKeyAt, type SignerEdge } from '../../keys/signers/open.ts'
import { addSignature } from '../../keys/statement.ts'
import type { Envelope } from '../../keys/types.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { edge } from './edge.ts'
import { awsStandIn, CREDENTIALS, GCP_KEY, gcpStandIn, type StandIn, TOKEN } from './stand-ins.ts'

/** The largest statement: 4096 bytes under signature. */
const largest: Envelope = { payloadType: 'text/x-test', payload: Buffer.alloc(4096 - 27, 7), signatures: [] }
const message = pae(largest.payloadType, largest.payload)
const rawKey = ({ publicKey }: StandIn) =>
  publicKey.export({ format: 'der', type: 'spki' }).subarray(12).toString('hex')

describe('AWS Signature Version 4', () => {
  // From the published test suite of Signature Version 4: get-vanilla and post-vanilla.
  it.each([
    ['GET', '5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31'],
    ['POST', '5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b'],
  ] as const)('gives the published signature of %s /', (method, wanted) => {
    const request = { method, url: new URL('https://example.amazonaws.com/'), headers: {}, body: '' }
    const credentials = { accessKeyId: CREDENTIALS.id, secretAccessKey: CREDENTIALS.secret }
    const scope = { region: 'us-east-1', service: 'service' }
    const { headers } = signV4(request, credentials, scope, new Date('2015-08-30T12:36:00Z'))
    expect(headers['authorization']).toBe(
      `AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=${wanted}`,
    )
  })
})

describe('the requests', () => {
  it('AWS: raw message, pure Ed25519, the region of the ARN', () => {
    const arn = 'arn:aws:kms:eu-west-3:111122223333:key/1234abcd'
    const place = awsPlace(arn, { AWS_REGION: 'us-east-1' })
    expect(place.url.href).toBe('https://kms.eu-west-3.amazonaws.com/')
    const request = awsSignRequest(arn, Buffer.from('abc'), place)
    expect(request.headers['x-amz-target']).toBe('TrentService.Sign')
    expect(JSON.parse(request.body)).toEqual({
      KeyId: arn,
      Message: 'YWJj',
      MessageType: 'RAW',
      SigningAlgorithm: 'ED25519_SHA_512',
    })
    expect(codeOf(() => awsPlace('alias/x', {}))).toBe('SIGNER_MISSING')
    expect(codeOf(() => awsPlace('alias/x', { AWS_REGION: 'evil.example/' }))).toBe('SIGNER_MISSING')
  })

  it('Google: data and no digest, under the name of the key version', () => {
    const request = gcpSignRequest(GCP_KEY, Buffer.from('abc'), { url: gcpEndpoint({}), token: 't' })
    expect(request.url.href).toBe(`https://cloudkms.googleapis.com/v1/${GCP_KEY}:asymmetricSign`)
    expect(request.headers['authorization']).toBe('Bearer t')
    expect(JSON.parse(request.body)).toEqual({ data: 'YWJj' })
  })
})

function awsEdge(url: string, more: Record<string, string> = {}): SignerEdge {
  return edge({
    environment: {
      AWS_REGION: 'eu-central-1',
      AWS_ACCESS_KEY_ID: CREDENTIALS.id,
      AWS_SECRET_ACCESS_KEY: CREDENTIALS.secret,
      AWS_SESSION_TOKEN: 'a-session',
      AWS_ENDPOINT_URL_KMS: url,
      ...more,
    },
  })
}

const services = [
  {
    name: 'AWS KMS',
    uri: 'aws-kms:alias/release',
    start: awsStandIn,
    edge: awsEdge,
    wrong: (url: string) => awsEdge(url, { AWS_SECRET_ACCESS_KEY: 'wrong' }),
    bare: edge({ environment: { AWS_REGION: 'eu-central-1' } }),
    bareCode: 'SIGNER_MISSING',
  },
  {
    name: 'Google Cloud KMS',
    uri: `gcp-kms:${GCP_KEY}`,
    start: gcpStandIn,
    edge: (url: string): SignerEdge =>
      edge({ environment: { CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS: `${url}/` }, tokenCommand: `echo '${TOKEN}'` }),
    wrong: (url: string) =>
      edge({ environment: { CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS: `${url}/` }, tokenCommand: 'echo other' }),
    bare: edge(),
    bareCode: 'SIGNER_FAILED',
  },
]

describe.each(services)('$name, against a stand-in', (service) => {
  let there: StandIn
  beforeAll(async () => {
    there = await service.start()
  })
  afterEach(() => {
    there.answer = undefined
  })
  afterAll(() => there.close())
  const sign = async (world: SignerEdge | undefined) =>
    await addSignature(largest, await openSigner(service.uri, world ?? edge()))

  it('signs the largest statement', async () => {
    const world = service.edge(there.url)
    expect(message).toHaveLength(4096)
    expect(await publicKeyAt(service.uri, world)).toBe(rawKey(there))
    const signed = await sign(world)
    const signer = await openSigner(service.uri, world)
    expect(verifySignature(signer.publicKey, message, signed.signatures[0] ?? new Uint8Array())).toBe(true)
    // One byte more is refused there, too.
    expect(await codeOfAsync(() => signer.sign(new Uint8Array(4097)))).toBe('SIGNER_FAILED')
  })

  it('without or with wrong credentials is refused, and no credentials are in the refusal', async () => {
    expect(await codeOfAsync(() => sign(service.bare))).toBe(service.bareCode)
    const refusal = await sign(service.wrong(there.url)).catch((error) => error)
    expect(refusal.code).toBe('SIGNER_FAILED')
    expect(JSON.stringify(refusal)).not.toMatch(/wrong|other|wJal/)
  })

  it.each<[string, (body: string) => readonly [number, string], string]>([
    ['lies', (body) => [200, forged(body)], 'SIGNATURE_REFUSED'],
    ['gives a short signature', (body) => [200, body.replace(/("[sS]ignature":")[^"]{4}/, '$1')], 'SIGNATURE_REFUSED'],
    ['gives no signature', () => [200, '{}'], 'SIGNER_FAILED'],
    ['gives no JSON', () => [200, '<html>'], 'SIGNER_FAILED'],
    ['gives a list', () => [200, '[]'], 'SIGNER_FAILED'],
    ['does not end', () => [200, 'x'.repeat(70_000)], 'SIGNER_FAILED'],
    ['sends elsewhere', () => [302, ''], 'SIGNER_FAILED'],
    ['fails', () => [500, 'out \x1b[31mof order'], 'SIGNER_FAILED'],
  ])('that %s is refused', async (_, answer, code) => {
    const signer = await openSigner(service.uri, service.edge(there.url))
    there.answer = answer
    const refusal = await addSignature(largest, signer).catch((error) => error)
    expect(refusal.code).toBe(code)
    expect(refusal.message).not.toContain('\x1b')
  })

  it('gets no credentials over a connection that anyone can read', async () => {
    expect(await codeOfAsync(() => sign(service.edge('http://kms.example')))).toBe('SIGNER_FAILED')
  })

  it('gets no credentials where the environment says to believe any certificate', async () => {
    const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED']
    process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
    onTestFinished(() => {
      if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before
    })
    const refusal = await sign(service.edge('https://127.0.0.1:1')).catch((error) => error)
    expect(refusal).toMatchObject({ code: 'SIGNER_FAILED' })
    expect(refusal.message).toContain('NODE_TLS_REJECT_UNAUTHORIZED')
  })

  it('that is not there is a refusal', async () => {
    expect(await codeOfAsync(() => sign(service.edge('http://127.0.0.1:1')))).toBe('SIGNER_FAILED')
    expect(await codeOfAsync(() => sign(service.edge('not an address')))).toBe('SIGNER_MISSING')
  })
})

it('credentials that no header can hold are refused, and are not in the refusal; a line end behind them is none', async () => {
  const there = await awsStandIn()
  onTestFinished(() => there.close())
  const open = (more: Record<string, string>) => publicKeyAt('aws-kms:alias/release', awsEdge(there.url, more))
  for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'])
    for (const value of ['secret-1\nsecret-2', 'secret-1 secret-2', 'secret-1\u00e9']) {
      const refusal = await open({ [name]: value }).catch((error) => error)
      expect(refusal.code).toBe('SIGNER_MISSING')
      expect(refusal.message).toContain(name)
      expect(`${refusal.message} ${refusal.next} ${JSON.stringify(refusal)}`).not.toMatch(/secret-/)
    }
  expect(await open({ AWS_SESSION_TOKEN: 'a-session\n' })).toBe(rawKey(there))
})

/** The answer with one bit of its signature changed. */
function forged(body: string): string {
  return body.replace(/("[sS]ignature":")([^"]+)/, (_, head: string, base64: string) => {
    const bytes = Buffer.from(base64, 'base64')
    bytes.writeUInt8(bytes.readUInt8(5) ^ 1, 5)
    return head + bytes.toString('base64')
  })
}

it('a key of another algorithm is refused', async () => {
  const there = await gcpStandIn()
  there.answer = (body) => [200, body.replace('EC_SIGN_ED25519', 'EC_SIGN_P256_SHA256')]
  const [, google] = services
  const work = () => publicKeyAt(`gcp-kms:${GCP_KEY}`, google?.edge(there.url) ?? edge())
  expect(await codeOfAsync(work)).toBe('SIGNER_FAILED')
  await there.close()
})
