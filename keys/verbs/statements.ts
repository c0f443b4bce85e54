import { cliErrors, type OptionSpec, requiredOption, type Verb } from '../../base/cli.ts'
import { describeEnvelope, envelopeLines } from '../describe.ts'
import { decodeEnvelope, MAX_ENVELOPE_BYTES } from '../dsse.ts'
import { exportStatement } from '../export.ts'
import { readKeyFileInfo } from '../file-signer.ts'
import { addToEnvelopeFile, readEnvelopeFile, readRequired, withSignatures, writeNewFiles } from '../files.ts'
import { ROLES } from '../root.ts'
import { publicKeyAt } from '../signers/open.ts'
import { signerEdge, signerOptions, signersFrom } from '../signers/options.ts'
import { parseKeyUri } from '../signers/uri.ts'
import { addSignature } from '../statement.ts'
import type { Root, Signer } from '../types.ts'
import { listOption, onlyPositional, readPublicKeys, readRoot, report } from './options.ts'

/** The verbs about any signed statement: show, sign, merge, export. */

const rootOption = {
  type: 'string',
  value: 'FILE',
  multiple: true,
  help: 'a root whose keys may have signed; may be repeated',
} as const satisfies OptionSpec

export const showVerb: Verb = {
  name: 'keys show',
  usage: 'keys show FILE|KEY [--root FILE]',
  summary: 'Show the public part of a key, or a signed statement and who signed it.',
  options: { root: rootOption, 'token-command': signerOptions['token-command'] },
  async run(call) {
    const path = onlyPositional(call, 'FILE')
    if (parseKeyUri(path).kind !== 'file') {
      const publicKey = await publicKeyAt(path, signerEdge(call))
      report(call, { kind: 'key', publicKey }, [`public key ${publicKey}`])
      return 0
    }
    const bytes = await readRequired(path, MAX_ENVELOPE_BYTES)
    if (!Buffer.from(bytes).toString('latin1').startsWith('{"payload"')) {
      const info = await readKeyFileInfo(path)
      report(call, { kind: 'key', ...info }, [`public key ${info.publicKey}`, `protection ${info.protection}`])
      return 0
    }
    const envelope = decodeEnvelope(bytes)
    const about = describeEnvelope(envelope, await readRoots(listOption(call, 'root')))
    report(call, { kind: 'statement', ...about }, envelopeLines(about, envelope.payload))
    return 0
  },
}

export const signVerb: Verb = {
  name: 'keys sign',
  usage: 'keys sign ENVELOPE --key KEY [options]',
  summary: 'Add signatures to a statement, in its file.',
  options: signerOptions,
  async run(call) {
    const path = onlyPositional(call, 'ENVELOPE')
    let envelope = await readEnvelopeFile(path)
    // A statement that is no sound root is not worth a root key's signature.
    const about = describeEnvelope(envelope, [])
    const signers = await signersFrom(call)
    for (const signer of signers) envelope = await addSignature(envelope, signer)
    envelope = await addToEnvelopeFile(path, envelope)
    const signedBy = signers.map(({ publicKey }) => publicKey)
    const signatures = envelope.signatures.length
    report(call, { file: path, signedBy, payloadSha256: about.payloadSha256, signatures }, [
      ...signedBy.map((key) => `${path}: signed by ${key}`),
      `  signatures ${signatures}, payload sha256 ${about.payloadSha256}`,
    ])
    return 0
  },
}

export const mergeVerb: Verb = {
  name: 'keys merge',
  usage: 'keys merge ENVELOPE COPY…',
  summary: 'Take over the signatures that copies of the same statement got elsewhere.',
  async run(call) {
    const [path, ...copies] = call.positionals
    if (path === undefined || copies.length === 0) throw cliErrors.USAGE('wanted one ENVELOPE and at least one COPY')
    let whole = await readEnvelopeFile(path)
    for (const copy of copies) whole = withSignatures(whole, [await readEnvelopeFile(copy)], copy)
    const { signatures } = await addToEnvelopeFile(path, whole)
    report(call, { file: path, signatures: signatures.length }, [`${path}: signatures ${signatures.length}`])
    return 0
  },
}

export const exportVerb: Verb = {
  name: 'keys export',
  usage: 'keys export ENVELOPE --to DIR --root FILE [--key KEY]',
  summary: 'Write a statement and its signatures for openssl, signify and minisign.',
  options: {
    ...signerOptions,
    to: { type: 'string', value: 'DIR', help: 'an empty or new folder for the files' },
    root: rootOption,
    'public-key': { type: 'string', value: 'KEY', multiple: true, help: 'a key that may have signed' },
  },
  async run(call) {
    const path = onlyPositional(call, 'ENVELOPE')
    const to = requiredOption(call, 'to')
    const envelope = await readEnvelopeFile(path)
    const edge = signerEdge(call)
    const roots = await readRoots(listOption(call, 'root'))
    // The private key is only for minisign, whose comment needs a signature of its own.
    const signers: readonly Signer[] = listOption(call, 'key').length > 0 ? await signersFrom(call) : []
    const keys = new Set([
      ...(await readPublicKeys(listOption(call, 'public-key'), edge)),
      ...signers.map(({ publicKey }) => publicKey),
      ...roots.flatMap((root) => ROLES.flatMap((role) => root.roles[role].keys)),
    ])
    const { files, checks } = await exportStatement(envelope, [...keys], signers)
    await writeNewFiles(to, files)
    report(call, { directory: to, files: [...files.keys()], checks }, [
      `${to}: ${files.size} files; to check them there:`,
      ...checks.map((command) => `  ${command}`),
    ])
    return 0
  },
}

async function readRoots(paths: readonly string[]): Promise<Root[]> {
  const roots: Root[] = []
  for (const path of paths) roots.push(await readRoot(path))
  return roots
}
