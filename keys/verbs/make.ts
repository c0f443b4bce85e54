import { join } from 'node:path'
import { cliErrors, type Invocation, type OptionSpec, requiredOption, type Verb } from '../../base/cli.ts'
import { nodeFiles } from '../../base/durable.ts'
import { type AskPassphrase, createKeyFile, loadSigner, type Protection } from '../file-signer.ts'
import { requireAbsent, writeEnvelopeFile } from '../files.ts'
import { newPassphraseFrom, passphraseGiven, passphraseOptions } from '../passphrase.ts'
import { encodeRoot, MAX_KEYS_PER_ROLE, PRODUCT_NAME, ROOT_PAYLOAD_TYPE } from '../root.ts'
import { signStatement } from '../statement.ts'
import type { PublicKey, Root } from '../types.ts'
import { countOption, now, onlyPositional, report } from './options.ts'

/** The verbs that make private keys: init and generate. */

const protectionOptions = {
  ...passphraseOptions,
  unprotected: { type: 'boolean', help: 'write keys bare, for development only' },
} as const satisfies Record<string, OptionSpec>

export const initVerb: Verb = {
  name: 'keys init',
  usage: 'keys init DIR --product NAME [options]',
  summary: "Make a product's keys and its first root statement, all on this machine.",
  options: {
    product: { type: 'string', value: 'NAME', help: 'the product that the roots are for' },
    'root-keys': { type: 'string', value: 'N', help: 'root keys to make (3)' },
    'root-threshold': { type: 'string', value: 'N', help: 'root keys that must sign (2)' },
    ...protectionOptions,
  },
  async run(call) {
    const dir = onlyPositional(call, 'DIR')
    const product = requiredOption(call, 'product')
    // Before there are keys: the root is made of them last.
    if (!PRODUCT_NAME.test(product))
      throw cliErrors.USAGE(`--product wants up to 64 of A-Z a-z 0-9 . _ -, found '${product}'`)
    const rootKeys = countOption(call, 'root-keys', 3, MAX_KEYS_PER_ROLE)
    const threshold = countOption(call, 'root-threshold', Math.min(2, rootKeys), rootKeys)
    const protection = protectionFrom(call)

    const names = [...Array.from({ length: rootKeys }, (_, i) => `root-${i + 1}`), 'release-1', 'fleet-1']
    const keyPath = (name: string) => join(dir, `${name}.key`)
    const outputs = [join(dir, 'root.json'), join(dir, 'roots', '1.json')]
    await nodeFiles.makeDir(join(dir, 'roots'))
    for (const path of [...names.map(keyPath), ...outputs]) await requireAbsent(path)

    const keys: PublicKey[] = []
    for (const name of names) keys.push(await createKeyFile(keyPath(name), protection))
    const root: Root = {
      type: 'root',
      product,
      version: 1,
      epoch: 1,
      issued: now(),
      roles: {
        root: { threshold, keys: keys.slice(0, rootKeys) },
        release: { threshold: 1, keys: keys.slice(rootKeys, rootKeys + 1) },
        fleet: { threshold: 1, keys: keys.slice(rootKeys + 1) },
      },
    }
    const signers = []
    for (const name of names.slice(0, threshold))
      signers.push(await loadSigner(keyPath(name), passphraseOf(protection)))
    const envelope = await signStatement(ROOT_PAYLOAD_TYPE, encodeRoot(root), signers)
    for (const path of outputs) await writeEnvelopeFile(path, envelope)
    report(call, { directory: dir, root }, [
      `${join(dir, 'root.json')}: root 1 of '${product}', ${threshold} of ${rootKeys} root keys must sign its successors`,
      ...names.map((name, i) => `${keyPath(name)}: ${keys[i]}`),
      ...(protection.kind === 'none' ? ['These keys lie bare in their files: for development only.'] : []),
    ])
    return 0
  },
}

export const generateVerb: Verb = {
  name: 'keys generate',
  usage: 'keys generate FILE [options]',
  summary: 'Make one private key in a new file, and print its public key.',
  options: protectionOptions,
  async run(call) {
    const path = onlyPositional(call, 'FILE')
    await requireAbsent(path)
    const publicKey = await createKeyFile(path, protectionFrom(call))
    report(call, { file: path, publicKey }, [publicKey])
    return 0
  },
}

function protectionFrom(call: Invocation): Protection {
  const given = passphraseGiven(call)
  const unprotected = call.options['unprotected'] === true
  if (unprotected && given) throw cliErrors.USAGE('--unprotected and a passphrase exclude one another')
  if (!unprotected && !given && !call.terminal.interactive)
    throw cliErrors.USAGE(
      'no terminal to ask at: give --passphrase-file, --passphrase-fd, --passphrase-command or --unprotected',
    )
  return unprotected ? { kind: 'none' } : { kind: 'passphrase', passphrase: newPassphraseFrom(call) }
}

function passphraseOf(protection: Protection): AskPassphrase {
  return protection.kind === 'passphrase' ? protection.passphrase : async () => new Uint8Array()
}
