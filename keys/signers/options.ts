import { cliErrors, type Invocation, type OptionSpec, stringOption } from '../../base/cli.ts'
import { passphraseFrom, passphraseOptions } from '../passphrase.ts'
import type { Signer } from '../types.ts'
import { openSigner, type SignerEdge } from './open.ts'

/** The options of every verb that signs. */
export const signerOptions = {
  key: {
    type: 'string',
    value: 'KEY',
    multiple: true,
    help: 'a key file, or pkcs11:, command:, aws-kms: or gcp-kms:; may be repeated',
  },
  ...passphraseOptions,
  'token-command': {
    type: 'string',
    value: 'COMMAND',
    help: 'for gcp-kms: prints an access token (gcloud auth print-access-token)',
  },
} as const satisfies Record<string, OptionSpec>

/** @throws USAGE */
export function signerEdge(call: Invocation): SignerEdge {
  return {
    passphrase: passphraseFrom(call),
    environment: process.env,
    tokenCommand: stringOption(call, 'token-command') ?? 'gcloud auth print-access-token',
    now: () => new Date(),
    signal: call.signal,
  }
}

/** The signers that --key names, in that order; at least one. @throws USAGE, SIGNER_*, KEY_*, FILE_* */
export async function signersFrom(call: Invocation): Promise<readonly Signer[]> {
  const keys = call.options['key']
  if (!Array.isArray(keys) || keys.length === 0) throw cliErrors.USAGE('--key is missing')
  const edge = signerEdge(call)
  const signers: Signer[] = []
  for (const key of keys) signers.push(await openSigner(key, edge))
  return signers
}
