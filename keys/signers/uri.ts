import { fromHex } from '../../base/bytes.ts'
import { checkPublicKey } from '../ed25519.ts'
import { keyErrors } from '../errors.ts'
import type { PublicKey } from '../types.ts'

/** What the value of `--key` names. A plain path is a key file; nothing secret can stand in any of them. */
export type KeyUri =
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'command'; readonly publicKey: PublicKey; readonly command: string }
  | Pkcs11Uri
  | { readonly kind: 'aws-kms'; readonly keyId: string }
  | { readonly kind: 'gcp-kms'; readonly name: string }

export interface Pkcs11Uri {
  readonly kind: 'pkcs11'
  /** The PKCS#11 library. */
  readonly module: string
  /** Which token; all that are given must match. */
  readonly token?: string
  readonly serial?: string
  /** Which key: its label, its id, or both. */
  readonly object?: string
  readonly id?: Uint8Array
  /** A file whose first line is the PIN. */
  readonly pinFile?: string
}

const GCP_NAME =
  /^projects\/[^/:?#\s]+\/locations\/[^/:?#\s]+\/keyRings\/[\w-]+\/cryptoKeys\/[\w-]+\/cryptoKeyVersions\/[0-9]+$/

/**
 * Reads a key's name. Pure.
 *
 * `command:PUBLICKEY:COMMAND`, `pkcs11:` as RFC 7512, `aws-kms:` with a key id, ARN or alias, `gcp-kms:` with the full
 * name of a key version; anything else is the path of a key file (`./pkcs11:x` for one with such a name).
 * @throws SIGNER_URI, KEY_INVALID
 */
export function parseKeyUri(text: string): KeyUri {
  const [, scheme, rest = ''] = /^(command|pkcs11|aws-kms|gcp-kms):(.*)$/s.exec(text) ?? []
  if (scheme === undefined) return { kind: 'file', path: text }
  if (scheme === 'pkcs11') return parsePkcs11(rest)
  if (scheme === 'aws-kms') {
    if (!/^[\w:/-]{1,2048}$/.test(rest)) throw keyErrors.SIGNER_URI(`'${rest}' is no AWS key id, ARN or alias/NAME`)
    return { kind: 'aws-kms', keyId: rest }
  }
  if (scheme === 'gcp-kms') {
    if (!GCP_NAME.test(rest)) throw keyErrors.SIGNER_URI(`'${rest}' is not the full name of a key version`)
    return { kind: 'gcp-kms', name: rest }
  }
  const [, key, command] = /^([0-9a-f]{64}):(.+)$/s.exec(rest) ?? []
  if (key === undefined || command === undefined)
    throw keyErrors.SIGNER_URI('wanted command:PUBLICKEY:COMMAND, the key as 64 lower-case hexadecimal characters')
  return { kind: 'command', publicKey: checkPublicKey(fromHex(key)), command }
}

function parsePkcs11(rest: string): Pkcs11Uri {
  // A "?" in the values behind the first one is a character like any other (RFC 7512, section 2.3).
  const [, path = '', query = ''] = /^([^?]*)\??(.*)$/s.exec(rest) ?? []
  const fields = new Map<string, Uint8Array>()
  for (const field of [...path.split(';'), ...query.split('&')].filter((text) => text !== '')) {
    const [, name, value] = /^([a-z-]+)=(.+)$/s.exec(field) ?? []
    if (name === undefined || value === undefined || fields.has(name))
      throw keyErrors.SIGNER_URI('a pkcs11: URI has fields NAME=VALUE, each once')
    fields.set(name, percentDecoded(value))
  }
  if (fields.has('pin-value'))
    throw keyErrors.SIGNER_URI('a PIN in a URI can be seen by every process', {
      next: 'Give pin-source=/path/of/a/file, or one of the --passphrase options.',
    })
  const text = (name: string): string | undefined => {
    const value = fields.get(name)
    fields.delete(name)
    return value === undefined ? undefined : Buffer.from(value).toString('utf8')
  }
  const module = text('module-path')
  const type = text('type') ?? 'private'
  const found = {
    token: text('token'),
    serial: text('serial'),
    object: text('object'),
    pinFile: text('pin-source')?.replace(/^file:/, ''),
  }
  const id = fields.get('id')
  fields.delete('id')
  const [strange] = fields.keys()
  if (strange !== undefined)
    throw keyErrors.SIGNER_URI(`'${strange}' is not known: wanted token, serial, object, id, module-path, pin-source`)
  if (module === undefined) throw keyErrors.SIGNER_URI('a pkcs11: URI needs ?module-path=LIBRARY')
  if (type !== 'private') throw keyErrors.SIGNER_URI(`type=${type}: a signer is a private key`)
  if (found.object === undefined && id === undefined) throw keyErrors.SIGNER_URI('a pkcs11: URI needs object= or id=')
  return {
    kind: 'pkcs11',
    module,
    ...(found.token === undefined ? {} : { token: found.token }),
    ...(found.serial === undefined ? {} : { serial: found.serial }),
    ...(found.object === undefined ? {} : { object: found.object }),
    ...(id === undefined ? {} : { id }),
    ...(found.pinFile === undefined ? {} : { pinFile: found.pinFile }),
  }
}

/** Percent-decoding to bytes: an id is not text. */
function percentDecoded(value: string): Uint8Array {
  const bytes: number[] = []
  for (const [part, code] of value.matchAll(/%([0-9A-Fa-f]{2})|[^%]/gsu)) {
    if (code === undefined) bytes.push(...Buffer.from(part))
    else bytes.push(Number.parseInt(code, 16))
  }
  if (/%(?![0-9A-Fa-f]{2})/.test(value)) throw keyErrors.SIGNER_URI('a % must be followed by two hexadecimal digits')
  return Uint8Array.from(bytes)
}
