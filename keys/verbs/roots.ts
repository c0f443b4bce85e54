import { cliErrors, type Invocation, type OptionSpec, requiredOption, type Verb } from '../../base/cli.ts'
import { requireAbsent, writeEnvelopeFile } from '../files.ts'
import { encodeRoot, ROOT_PAYLOAD_TYPE } from '../root.ts'
import { firstRoot, nextRoot, type RootChange, requireReachable } from '../rotation.ts'
import { signerEdge, signerOptions } from '../signers/options.ts'
import type { PublicKey, Root } from '../types.ts'
import {
  addOptions,
  listOption,
  now,
  onlyPositional,
  readPublicKeys,
  readRoot,
  report,
  thresholdOptions,
} from './options.ts'

/** The verbs that write root statements, unsigned: compose, rotate, revoke. No private key is opened here. */

const changeOptions = {
  add: { type: 'string', value: 'ROLE=KEY', multiple: true, help: 'list a key: hexadecimal, or as for --key' },
  threshold: { type: 'string', value: 'ROLE=N', multiple: true, help: 'keys of a role that must sign' },
  'token-command': signerOptions['token-command'],
} as const satisfies Record<string, OptionSpec>
const outOption = { type: 'string', value: 'FILE', help: 'where the next root goes; must not exist' } as const
const epochOption = { type: 'boolean', help: 'open a new epoch: after theft of a release key' } as const

export const composeVerb: Verb = {
  name: 'keys compose',
  usage: 'keys compose OUT --product NAME --add root=KEY… --add release=KEY --add fleet=KEY',
  summary: 'Write root 1 from public keys that their holders sent, unsigned.',
  options: { product: { type: 'string', value: 'NAME', help: 'the product that the roots are for' }, ...changeOptions },
  async run(call) {
    const out = onlyPositional(call, 'OUT')
    const product = requiredOption(call, 'product')
    await requireAbsent(out)
    const add = await addOptions(call, signerEdge(call))
    const root = firstRoot(product, add, thresholdOptions(call), now())
    await writeRoot(out, root)
    report(call, { file: out, root }, [
      `${out}: root 1 of '${product}', not signed yet`,
      `  ${root.roles.root.threshold} of these must sign it:`,
      ...root.roles.root.keys.map((key) => `    ${key}`),
    ])
    return 0
  },
}

export const rotateVerb: Verb = {
  name: 'keys rotate',
  usage: 'keys rotate ROOT --out NEXT [options]',
  summary: 'Write the next root version, unsigned: keys added, removed, thresholds changed.',
  options: {
    out: outOption,
    remove: { type: 'string', value: 'KEY', multiple: true, help: 'list a key no longer' },
    ...changeOptions,
    'raise-epoch': epochOption,
  },
  async run(call) {
    const old = await readRoot(onlyPositional(call, 'ROOT'))
    const out = requiredOption(call, 'out')
    await requireAbsent(out)
    const root = nextRoot(old, await changeFrom(call, listOption(call, 'remove')), now())
    await writeRoot(out, root)
    report(call, { file: out, root }, nextLines(out, old, root))
    return 0
  },
}

export const revokeVerb: Verb = {
  name: 'keys revoke',
  usage: 'keys revoke ROOT KEY… --out NEXT [options]',
  summary: 'Write the next root version without some keys, unsigned, and check that it can be signed.',
  options: {
    out: outOption,
    ...changeOptions,
    'raise-epoch': epochOption,
    'still-held': { type: 'boolean', help: 'the revoked keys are not lost: they can still sign this change' },
  },
  async run(call) {
    const [path, ...keys] = call.positionals
    if (path === undefined || keys.length === 0) throw cliErrors.USAGE('wanted one ROOT and at least one KEY')
    const old = await readRoot(path)
    const out = requiredOption(call, 'out')
    await requireAbsent(out)
    const change = await changeFrom(call, keys)
    const root = nextRoot(old, change, now())
    requireReachable(old, root, call.options['still-held'] === true ? [] : change.remove)
    await writeRoot(out, root)
    report(call, { file: out, root, revoked: change.remove }, [
      ...nextLines(out, old, root),
      ...adviceLines(old, root, change),
    ])
    return 0
  },
}

async function changeFrom(call: Invocation, remove: readonly string[]): Promise<RootChange> {
  const edge = signerEdge(call)
  return {
    add: await addOptions(call, edge),
    remove: await readPublicKeys(remove, edge),
    thresholds: thresholdOptions(call),
    raiseEpoch: call.options['raise-epoch'] === true,
  }
}

async function writeRoot(path: string, root: Root): Promise<void> {
  await writeEnvelopeFile(path, { payloadType: ROOT_PAYLOAD_TYPE, payload: encodeRoot(root), signatures: [] })
}

function nextLines(out: string, old: Root, root: Root): string[] {
  return [
    `${out}: root ${root.version}, not signed yet`,
    `  ${old.roles.root.threshold} root keys of version ${old.version} and ${root.roles.root.threshold} of version ${root.version} must sign it`,
  ]
}

/** What a person who revokes a key easily forgets. */
function adviceLines(old: Root, root: Root, change: RootChange): string[] {
  const removed = (role: 'root' | 'release' | 'fleet'): readonly PublicKey[] =>
    old.roles[role].keys.filter((key) => change.remove.includes(key))
  const lines: string[] = []
  const { threshold, keys } = root.roles.root
  if (keys.length === threshold)
    lines.push('  every root key must now sign: losing one more is final, add another soon')
  if (removed('release').length > 0) {
    lines.push('  releases signed by the revoked key alone install nowhere any more: sign those you still need again')
    if (!change.raiseEpoch)
      lines.push('  if it was stolen, give --raise-epoch too: it ends whatever numbers the thief signed')
  }
  if (removed('fleet').length > 0) lines.push('  publish every channel again with a fleet key of the new root')
  return lines
}
