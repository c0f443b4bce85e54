import { keyErrors } from '../errors.ts'
import { type AskPassphrase, loadSigner, readKeyFileInfo } from '../file-signer.ts'
import { runShell } from '../shell.ts'
import type { PublicKey, Signer } from '../types.ts'
import {
  awsCredentials,
  awsPlace,
  awsPublicKey,
  awsPublicKeyRequest,
  awsSignature,
  awsSignRequest,
  signV4,
} from './aws.ts'
import { gcpEndpoint, gcpPublicKey, gcpPublicKeyRequest, gcpSignature, gcpSignRequest } from './gcp.ts'
import { askService, type HttpRequest } from './http.ts'
import { pkcs11PublicKey, pkcs11Signer } from './pkcs11.ts'
import { type KeyUri, parseKeyUri } from './uri.ts'

/** What signers need of the world around them. */
export interface SignerEdge {
  /** The passphrase of a key file, the PIN of a token. */
  readonly passphrase: AskPassphrase
  /** Credentials and endpoints of key services, under the names that their vendors gave. */
  readonly environment: Readonly<Record<string, string | undefined>>
  /** Prints an access token for Google Cloud. */
  readonly tokenCommand: string
  readonly now: () => Date
  readonly signal: AbortSignal
}

/** What a signing command prints: 64 bytes, or their base64 and a newline. */
const MAX_COMMAND_OUTPUT = 1024

/**
 * Opens the key that a `--key` value names. What its signer returns must still be verified (`addSignature` does).
 * @throws SIGNER_*, KEY_*, FILE_*
 */
export async function openSigner(text: string, edge: SignerEdge): Promise<Signer> {
  const uri = parseKeyUri(text)
  if (uri.kind === 'file') return await loadSigner(uri.path, edge.passphrase)
  if (uri.kind === 'pkcs11') return await pkcs11Signer(uri, edge.passphrase)
  if (uri.kind === 'command') return commandSigner(uri, edge)
  const describe = text
  if (uri.kind === 'aws-kms') {
    const ask = awsService(uri.keyId, edge)
    return {
      publicKey: await publicKeyOfUri(uri, edge),
      describe,
      sign: async (bytes) => awsSignature(await ask((place) => awsSignRequest(uri.keyId, bytes, place))),
    }
  }
  const ask = gcpService(edge)
  return {
    publicKey: await publicKeyOfUri(uri, edge),
    describe,
    sign: async (bytes) => gcpSignature(await ask((place) => gcpSignRequest(uri.name, bytes, place))),
  }
}

/** The public key of what a `--key` value names, without passphrase or PIN. @throws SIGNER_*, KEY_*, FILE_* */
export async function publicKeyAt(text: string, edge: SignerEdge): Promise<PublicKey> {
  return await publicKeyOfUri(parseKeyUri(text), edge)
}

async function publicKeyOfUri(uri: KeyUri, edge: SignerEdge): Promise<PublicKey> {
  switch (uri.kind) {
    case 'file':
      return (await readKeyFileInfo(uri.path)).publicKey
    case 'command':
      return uri.publicKey
    case 'pkcs11':
      return await pkcs11PublicKey(uri)
    case 'aws-kms':
      return awsPublicKey(await awsService(uri.keyId, edge)((place) => awsPublicKeyRequest(uri.keyId, place)))
    case 'gcp-kms':
      return gcpPublicKey(await gcpService(edge)((place) => gcpPublicKeyRequest(uri.name, place)))
  }
}

function commandSigner(uri: Extract<KeyUri, { kind: 'command' }>, edge: SignerEdge): Signer {
  return {
    publicKey: uri.publicKey,
    describe: 'the signing command',
    async sign(bytes) {
      const printed = await runShell(uri.command, 'the signing command', MAX_COMMAND_OUTPUT, edge.signal, bytes)
      if (printed.length === 64) return printed
      const text = Buffer.from(printed).toString('latin1').trim()
      if (/^[A-Za-z0-9+/]{86}==$/.test(text)) return new Uint8Array(Buffer.from(text, 'base64'))
      throw keyErrors.SIGNER_FAILED(
        `the signing command printed ${printed.length} bytes, wanted 64 bytes or 88 characters of base64`,
      )
    },
  }
}

function awsService(keyId: string, edge: SignerEdge) {
  return async (make: (place: ReturnType<typeof awsPlace>) => HttpRequest) => {
    const place = awsPlace(keyId, edge.environment)
    const credentials = awsCredentials(edge.environment)
    const request = signV4(make(place), credentials, { region: place.region, service: 'kms' }, edge.now())
    return await askService(request, edge.signal)
  }
}

function gcpService(edge: SignerEdge) {
  return async (make: (place: { url: URL; token: string }) => HttpRequest) => {
    const url = gcpEndpoint(edge.environment)
    const printed = await runShell(edge.tokenCommand, 'the token command', 16 * 1024, edge.signal)
    const token = Buffer.from(printed).toString('latin1').trim()
    // RFC 6750's characters: nothing that could end a header.
    if (!/^[\w.~+/-]+=*$/.test(token)) throw keyErrors.SIGNER_FAILED('the token command printed no access token')
    return await askService(make({ url, token }), edge.signal)
  }
}
