import { createHash } from 'node:crypto'
import { hex } from '../base/bytes.ts'
import { isBistableError } from '../base/errors.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { MAX_SIGNED_BYTES, pae } from './dsse.ts'
import { parseRoot, ROLES, ROOT_PAYLOAD_TYPE } from './root.ts'
import { matchSignatures } from './threshold.ts'
import type { Envelope, PublicKey, Role, Root } from './types.ts'

/** What an envelope says, for the person who is to sign it. Nothing here decides anything. */

export interface RoleTally {
  readonly rootVersion: number
  readonly role: Role
  readonly threshold: number
  readonly signed: readonly PublicKey[]
  readonly enough: boolean
}

export interface EnvelopeReport {
  readonly payloadType: string
  /** Bytes under signature. */
  readonly signedBytes: number
  readonly payloadSha256: string
  readonly signatures: number
  /** How far the signatures reach for each role with at least one of them, and for root statements always. */
  readonly tallies: readonly RoleTally[]
  readonly unknownSignatures: number
  /** The payload as JSON text, non-ASCII characters escaped; undefined when it is not strict JSON. */
  readonly payload: string | undefined
}

/** @param roots roots whose keys may have signed; a root statement's own keys are added */
export function describeEnvelope(envelope: Envelope, roots: readonly Root[]): EnvelopeReport {
  const own = envelope.payloadType === ROOT_PAYLOAD_TYPE ? [parseRoot(envelope.payload)] : []
  const candidates = [...roots, ...own]
  const keys = new Set(candidates.flatMap((root) => ROLES.flatMap((role) => root.roles[role].keys)))
  const { signers, unknown } = matchSignatures(envelope, keys)
  return {
    payloadType: envelope.payloadType,
    signedBytes: pae(envelope.payloadType, envelope.payload).length,
    payloadSha256: createHash('sha256').update(envelope.payload).digest('hex'),
    signatures: envelope.signatures.length,
    tallies: candidates
      .flatMap((root) => ROLES.map((role) => tally(root, role, signers)))
      .filter(({ role, signed }) => signed.length > 0 || (role === 'root' && own.length > 0)),
    unknownSignatures: unknown.length,
    payload: readable(envelope.payload),
  }
}

function tally(root: Root, role: Role, signers: ReadonlySet<PublicKey>): RoleTally {
  const { keys, threshold } = root.roles[role]
  const signed = keys.filter((key) => signers.has(key))
  return { rootVersion: root.version, role, threshold, signed, enough: signed.length >= threshold }
}

function readable(payload: Uint8Array): string | undefined {
  try {
    const text = JSON.stringify(parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES }), undefined, 2)
    // What is shown must be what is signed: no character may turn the line around or drive the terminal.
    return text.replace(/[^\n -~]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
  } catch (error) {
    if (isBistableError(error)) return undefined
    throw error
  }
}

export function envelopeLines(report: EnvelopeReport, payload: Uint8Array): string[] {
  return [
    `statement ${report.payloadType}`,
    `  payload sha256 ${report.payloadSha256}`,
    `  bytes under signature ${report.signedBytes} of ${MAX_SIGNED_BYTES}`,
    `  signatures ${report.signatures}${report.unknownSignatures > 0 ? `, ${report.unknownSignatures} by keys not known here` : ''}`,
    ...report.tallies.flatMap(({ rootVersion, role, threshold, signed, enough }) => [
      `  root ${rootVersion}, ${role}: ${signed.length} of ${threshold} needed${enough ? ', enough' : ''}`,
      ...signed.map((key) => `    ${key}`),
    ]),
    report.payload ?? `payload (not JSON) ${hex(payload)}`,
  ]
}
