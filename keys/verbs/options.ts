import { fromHex } from '../../base/bytes.ts'
import { cliErrors, type Invocation, stringOption } from '../../base/cli.ts'
import { MAX_ENVELOPE_BYTES } from '../dsse.ts'
import { checkPublicKey } from '../ed25519.ts'
import { readRequired } from '../files.ts'
import { MAX_KEYS_PER_ROLE, ROLES, trustAnchor } from '../root.ts'
import { publicKeyAt, type SignerEdge } from '../signers/open.ts'
import type { PublicKey, Role, Root } from '../types.ts'

/** What the key verbs read from the command line, and how they answer. */

export function report(call: Invocation, json: Readonly<Record<string, unknown>>, lines: readonly string[]): void {
  if (call.json) call.terminal.out(JSON.stringify({ ok: true, ...json }))
  else for (const line of lines) call.terminal.out(line)
}

/** The time of day as root statements write it. */
export function now(): string {
  return `${new Date().toISOString().slice(0, 19)}Z`
}

export function onlyPositional(call: Invocation, what: string): string {
  const [path, more] = call.positionals
  if (path === undefined || more !== undefined)
    throw cliErrors.USAGE(`wanted one ${what}, found ${call.positionals.length} arguments`)
  return path
}

export function listOption(call: Invocation, name: string): readonly string[] {
  const value = call.options[name]
  return Array.isArray(value) ? value : []
}

export function countOption(call: Invocation, name: string, otherwise: number, most: number): number {
  const text = stringOption(call, name)
  return text === undefined ? otherwise : parseCount(text, name, most)
}

export function parseCount(text: string, name: string, most: number): number {
  const value = /^[0-9]{1,3}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > most) throw cliErrors.USAGE(`--${name} wants a number from 1 to ${most}, found '${text}'`)
  return value
}

/** Values of the form ROLE=VALUE. */
export function roleOptions(call: Invocation, name: string): [Role, string][] {
  return listOption(call, name).map((text) => {
    const role = ROLES.find((known) => text.startsWith(`${known}=`))
    if (role === undefined) throw cliErrors.USAGE(`--${name} wants ${ROLES.join('=…, ')}=…, found '${text}'`)
    return [role, text.slice(role.length + 1)]
  })
}

/** --threshold ROLE=N */
export function thresholdOptions(call: Invocation): Partial<Record<Role, number>> {
  const thresholds: Partial<Record<Role, number>> = {}
  for (const [role, value] of roleOptions(call, 'threshold'))
    thresholds[role] = parseCount(value, 'threshold', MAX_KEYS_PER_ROLE)
  return thresholds
}

/** --add ROLE=KEY */
export async function addOptions(call: Invocation, edge: SignerEdge): Promise<{ role: Role; key: PublicKey }[]> {
  const add = []
  for (const [role, value] of roleOptions(call, 'add')) add.push({ role, key: await readPublicKey(value, edge) })
  return add
}

/** A public key in hexadecimal, or that of whatever a --key may name. */
export async function readPublicKey(text: string, edge: SignerEdge): Promise<PublicKey> {
  return /^[0-9a-f]{64}$/.test(text) ? checkPublicKey(fromHex(text)) : await publicKeyAt(text, edge)
}

export async function readPublicKeys(texts: readonly string[], edge: SignerEdge): Promise<PublicKey[]> {
  const keys: PublicKey[] = []
  for (const text of texts) keys.push(await readPublicKey(text, edge))
  return keys
}

/** A root that is signed by its own threshold. */
export async function readRoot(path: string): Promise<Root> {
  return trustAnchor(await readRequired(path, MAX_ENVELOPE_BYTES)).current
}
