import { join } from 'node:path'
import { fromHex } from '../base/bytes.ts'
import { cliErrors, type Invocation, type OptionSpec, requiredOption, stringOption, type Verb } from '../base/cli.ts'
import { nodeFiles } from '../base/durable.ts'
import { describeEnvelope, envelopeLines } from './describe.ts'
import { decodeEnvelope, MAX_ENVELOPE_BYTES } from './dsse.ts'
import { checkPublicKey } from './ed25519.ts'
import { createKeyFile, loadSigner, type Protection, readKeyFileInfo } from './file-signer.ts'
import { readEnvelopeFile, readRequired, requireAbsent, writeEnvelopeFile } from './files.ts'
import { passphraseFrom, passphraseOptions } from './passphrase.ts'
import { encodeRoot, MAX_KEYS_PER_ROLE, ROLES, ROOT_PAYLOAD_TYPE, trustAnchor } from './root.ts'
import { nextRoot } from './rotation.ts'
import { addSignature, signStatement } from './statement.ts'
import type { PublicKey, Role, Root } from './types.ts'

const protectionOptions = {
  ...passphraseOptions,
  unprotected: { type: 'boolean', help: 'write keys bare, for development only' },
} as const satisfies Record<string, OptionSpec>

const init: Verb = {
  name: 'keys init',
  usage: 'keys init DIR --product NAME [options]',
  summary: "Make a product's keys and its first root statement.",
  options: {
    product: { type: 'string', value: 'NAME', help: 'the product that the roots are for' },
    'root-keys': { type: 'string', value: 'N', help: 'root keys to make (3)' },
    'root-threshold': { type: 'string', value: 'N', help: 'root keys that must sign (2)' },
    ...protectionOptions,
  },
  async run(call) {
    const dir = onlyPositional(call, 'DIR')
    const product = requiredOption(call, 'product')
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

const generate: Verb = {
  name: 'keys generate',
  usage: 'keys generate FILE [options]',
  summary: 'Make one private key in a new file, and print its public key.',
  options: protectionOptions,
  async run(call) {
    const path = onlyPositional(call, 'FILE')
    const publicKey = await createKeyFile(path, protectionFrom(call))
    report(call, { file: path, publicKey }, [publicKey])
    return 0
  },
}

const show: Verb = {
  name: 'keys show',
  usage: 'keys show FILE [--root FILE]',
  summary: 'Show a key file (its public part) or a signed statement and who signed it.',
  options: {
    root: { type: 'string', value: 'FILE', multiple: true, help: 'a root whose keys may have signed; may be repeated' },
  },
  async run(call) {
    const path = onlyPositional(call, 'FILE')
    const bytes = await readRequired(path, MAX_ENVELOPE_BYTES)
    if (!Buffer.from(bytes).toString('latin1').startsWith('{"payload"')) {
      const info = await readKeyFileInfo(path)
      report(call, { kind: 'key', ...info }, [`public key ${info.publicKey}`, `protection ${info.protection}`])
      return 0
    }
    const envelope = decodeEnvelope(bytes)
    const roots: Root[] = []
    for (const file of listOption(call, 'root')) roots.push(await readRoot(file))
    const about = describeEnvelope(envelope, roots)
    report(call, { kind: 'statement', ...about }, envelopeLines(about, envelope.payload))
    return 0
  },
}

const sign: Verb = {
  name: 'keys sign',
  usage: 'keys sign ENVELOPE --key FILE [options]',
  summary: 'Add one signature to a statement, in its file.',
  options: {
    key: { type: 'string', value: 'FILE', help: 'the private key file to sign with' },
    ...passphraseOptions,
  },
  async run(call) {
    const path = onlyPositional(call, 'ENVELOPE')
    const key = requiredOption(call, 'key')
    const envelope = await readEnvelopeFile(path)
    // A statement that is no sound root is not worth a root key's signature.
    const about = describeEnvelope(envelope, [])
    const signer = await loadSigner(key, passphraseFrom(call))
    const signed = await addSignature(envelope, signer)
    await writeEnvelopeFile(path, signed)
    const signatures = signed.signatures.length
    report(call, { file: path, signedBy: signer.publicKey, payloadSha256: about.payloadSha256, signatures }, [
      `${path}: signed by ${signer.publicKey}; signatures now: ${signatures}`,
      `  payload sha256 ${about.payloadSha256}`,
    ])
    return 0
  },
}

const rotate: Verb = {
  name: 'keys rotate',
  usage: 'keys rotate ROOT --out NEXT [options]',
  summary: 'Write the next root version, unsigned: keys added, removed, thresholds changed.',
  options: {
    out: { type: 'string', value: 'FILE', help: 'where the next root goes; must not exist' },
    add: { type: 'string', value: 'ROLE=KEY', multiple: true, help: 'list a key: hexadecimal or a key file' },
    remove: { type: 'string', value: 'KEY', multiple: true, help: 'list a key no longer' },
    threshold: { type: 'string', value: 'ROLE=N', multiple: true, help: 'keys of a role that must sign' },
    'raise-epoch': { type: 'boolean', help: 'open a new epoch: after theft of a release key' },
  },
  async run(call) {
    const old = await readRoot(onlyPositional(call, 'ROOT'))
    const out = requiredOption(call, 'out')
    await requireAbsent(out)
    const add = []
    for (const [role, value] of roleOptions(call, 'add')) add.push({ role, key: await readPublicKey(value) })
    const remove: PublicKey[] = []
    for (const value of listOption(call, 'remove')) remove.push(await readPublicKey(value))
    const thresholds: Partial<Record<Role, number>> = {}
    for (const [role, value] of roleOptions(call, 'threshold'))
      thresholds[role] = parseCount(value, 'threshold', MAX_KEYS_PER_ROLE)
    const raiseEpoch = call.options['raise-epoch'] === true

    const root = nextRoot(old, { add, remove, thresholds, raiseEpoch }, now())
    await writeEnvelopeFile(out, { payloadType: ROOT_PAYLOAD_TYPE, payload: encodeRoot(root), signatures: [] })
    report(call, { file: out, root }, [
      `${out}: root ${root.version}, not signed yet`,
      `  ${old.roles.root.threshold} root keys of version ${old.version} and ${root.roles.root.threshold} of version ${root.version} must sign it`,
    ])
    return 0
  },
}

export const keyVerbs: readonly Verb[] = [init, generate, show, sign, rotate]

function report(call: Invocation, json: Readonly<Record<string, unknown>>, lines: readonly string[]): void {
  if (call.json) call.terminal.out(JSON.stringify({ ok: true, ...json }))
  else for (const line of lines) call.terminal.out(line)
}

function now(): string {
  return `${new Date().toISOString().slice(0, 19)}Z`
}

function onlyPositional(call: Invocation, what: string): string {
  const [path, more] = call.positionals
  if (path === undefined || more !== undefined)
    throw cliErrors.USAGE(`wanted one ${what}, found ${call.positionals.length} arguments`)
  return path
}

function listOption(call: Invocation, name: string): readonly string[] {
  const value = call.options[name]
  return Array.isArray(value) ? value : []
}

function countOption(call: Invocation, name: string, otherwise: number, most: number): number {
  const text = stringOption(call, name)
  return text === undefined ? otherwise : parseCount(text, name, most)
}

function parseCount(text: string, name: string, most: number): number {
  const value = /^[0-9]{1,3}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > most) throw cliErrors.USAGE(`--${name} wants a number from 1 to ${most}, found '${text}'`)
  return value
}

function roleOptions(call: Invocation, name: string): [Role, string][] {
  return listOption(call, name).map((text) => {
    const role = ROLES.find((known) => text.startsWith(`${known}=`))
    if (role === undefined) throw cliErrors.USAGE(`--${name} wants ${ROLES.join('=…, ')}=…, found '${text}'`)
    return [role, text.slice(role.length + 1)]
  })
}

function protectionFrom(call: Invocation): Protection {
  const passphrase = passphraseFrom(call)
  const given = stringOption(call, 'passphrase-file') ?? stringOption(call, 'passphrase-fd')
  const unprotected = call.options['unprotected'] === true
  if (unprotected === (given !== undefined))
    throw cliErrors.USAGE('give one of --passphrase-file, --passphrase-fd and --unprotected')
  return unprotected ? { kind: 'none' } : { kind: 'passphrase', passphrase }
}

function passphraseOf(protection: Protection): () => Promise<Uint8Array> {
  return protection.kind === 'passphrase' ? protection.passphrase : async () => new Uint8Array()
}

async function readRoot(path: string): Promise<Root> {
  return trustAnchor(await readRequired(path, MAX_ENVELOPE_BYTES)).current
}

async function readPublicKey(text: string): Promise<PublicKey> {
  return /^[0-9a-f]{64}$/.test(text) ? checkPublicKey(fromHex(text)) : (await readKeyFileInfo(text)).publicKey
}
