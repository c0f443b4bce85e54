import { createHash } from 'node:crypto'
import { fromHex } from '../base/bytes.ts'
import { pae } from './dsse.ts'
import { spkiOf, verifySignature } from './ed25519.ts'
import { keyErrors } from './errors.ts'
import type { Envelope, PublicKey, Signer } from './types.ts'

/**
 * A statement and its signatures in the wrappings of tools that are not ours. The signatures are the envelope's own:
 * Ed25519 over the bytes that DSSE gives, which stand in `statement.signed`.
 */

export interface Exported {
  /** File name and content. */
  readonly files: ReadonlyMap<string, Uint8Array>
  /** Shell commands that check them, to run beside the files. */
  readonly checks: readonly string[]
}

const MESSAGE = 'statement.signed'

/**
 * One set of files for each of `keys` that signed: for `openssl pkeyutl`, signify, and, where a signer is at hand,
 * minisign, which wants a second signature, over the first one and its comment.
 * @param keys keys that may have signed
 * @throws EXPORT_NOTHING when none of them did, SIGNATURE_REFUSED, and what signers throw
 */
export async function exportStatement(
  envelope: Envelope,
  keys: readonly PublicKey[],
  signers: readonly Signer[],
): Promise<Exported> {
  const message = pae(envelope.payloadType, envelope.payload)
  const files = new Map<string, Uint8Array>([
    [MESSAGE, message],
    ['payload.json', envelope.payload],
  ])
  const checks: string[] = []
  for (const key of keys) {
    const signature = envelope.signatures.find((candidate) => verifySignature(key, message, candidate))
    if (signature === undefined) continue
    const name = key.slice(0, 16)
    files.set(`${name}.pem`, text(pem(key)))
    files.set(`${name}.sig`, signature)
    checks.push(`openssl pkeyutl -verify -rawin -pubin -inkey ${name}.pem -in ${MESSAGE} -sigfile ${name}.sig`)
    files.set(`${name}.signify.pub`, text(signifyFile(`bistable key ${key}`, key, fromHex(key))))
    files.set(`${name}.signify.sig`, text(signifyFile(`verify with ${name}.signify.pub`, key, signature)))
    checks.push(`signify-openbsd -V -p ${name}.signify.pub -x ${name}.signify.sig -m ${MESSAGE}`)
    const signer = signers.find(({ publicKey }) => publicKey === key)
    if (signer === undefined) continue
    files.set(`${name}.minisign.pub`, text(signifyFile(`bistable key ${key}`, key, fromHex(key))))
    files.set(`${name}.minisig`, text(await minisignFile(`bistable ${envelope.payloadType}`, signature, signer)))
    checks.push(`minisign -V -p ${name}.minisign.pub -x ${name}.minisig -m ${MESSAGE}`)
  }
  if (checks.length === 0)
    throw keyErrors.EXPORT_NOTHING(`none of the ${keys.length} keys named made one of the signatures`)
  return { files, checks }
}

function pem(key: PublicKey): string {
  return `-----BEGIN PUBLIC KEY-----\n${Buffer.from(spkiOf(key)).toString('base64')}\n-----END PUBLIC KEY-----\n`
}

/**
 * signify(1): a comment line, then base64 of "Ed", a key number of 8 bytes that only has to be equal in key and
 * signature, and the 32 or 64 bytes. minisign's files begin in the same way.
 */
function signifyFile(comment: string, key: PublicKey, bytes: Uint8Array): string {
  const number = createHash('sha256').update(fromHex(key)).digest().subarray(0, 8)
  return `untrusted comment: ${comment}\n${Buffer.concat([Buffer.from('Ed'), number, bytes]).toString('base64')}\n`
}

/** minisign's signature file of the first kind ("Ed", not hashed), with its signed comment. */
async function minisignFile(comment: string, signature: Uint8Array, signer: Signer): Promise<string> {
  // No statement begins like this: a DSSE encoding starts with text, this with the point R of a signature.
  const global = new Uint8Array(Buffer.concat([signature, Buffer.from(comment)]))
  const second = await signer.sign(global)
  if (!verifySignature(signer.publicKey, global, second))
    throw keyErrors.SIGNATURE_REFUSED(`what ${signer.describe} returned does not verify under ${signer.publicKey}`)
  const head = signifyFile('signature from bistable', signer.publicKey, signature)
  return `${head}trusted comment: ${comment}\n${Buffer.from(second).toString('base64')}\n`
}

const text = (content: string): Uint8Array => new Uint8Array(Buffer.from(content))
