import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { compareBytes } from '../base/bytes.ts'
import { nodeFiles } from '../base/durable.ts'
import { isBistableError } from '../base/errors.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { ADDON_PAYLOAD_TYPE, parseAddon } from '../bundle/addon.ts'
import { ASSIGNMENT_PAYLOAD_TYPE, parseAssignment } from '../bundle/assignment.ts'
import { FRESHNESS_PAYLOAD_TYPE, parseFreshness } from '../bundle/freshness.ts'
import { parseRelease } from '../bundle/release.ts'
import { RELEASE_PAYLOAD_TYPE } from '../bundle/types.ts'
import { decodeEnvelope, MAX_ENVELOPE_BYTES, MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { addToEnvelopeFile } from '../keys/files.ts'
import { parseRoot, ROOT_PAYLOAD_TYPE } from '../keys/root.ts'
import { addSignature } from '../keys/statement.ts'
import type { Envelope, Signer } from '../keys/types.ts'
import { publisherErrors } from './errors.ts'

/** Signing: reads a statement of at most 4096 bytes and nothing else. */

/** How each kind of statement is checked before it is signed: nothing malformed gets a signature. */
const KINDS = {
  release: { payloadType: RELEASE_PAYLOAD_TYPE, parse: parseRelease },
  root: { payloadType: ROOT_PAYLOAD_TYPE, parse: parseRoot },
  assignment: { payloadType: ASSIGNMENT_PAYLOAD_TYPE, parse: parseAssignment },
  freshness: { payloadType: FRESHNESS_PAYLOAD_TYPE, parse: parseFreshness },
  addon: { payloadType: ADDON_PAYLOAD_TYPE, parse: parseAddon },
} as const

/**
 * Which statement these bytes are: a payload without signatures, or an envelope. The payload is validated. Pure.
 * @throws STATEMENT_INVALID, and the parsers' errors
 */
export function readStatement(bytes: Uint8Array): Envelope {
  const envelope = envelopeOf(bytes)
  const kind = Object.values(KINDS).find(({ payloadType }) => payloadType === envelope.payloadType)
  if (kind === undefined)
    throw publisherErrors.STATEMENT_INVALID(`statements of type ${envelope.payloadType} are not signed here`)
  kind.parse(envelope.payload)
  return envelope
}

const isKind = (type: unknown): type is keyof typeof KINDS => typeof type === 'string' && Object.hasOwn(KINDS, type)

function envelopeOf(bytes: Uint8Array): Envelope {
  const json = parseStrictJson(bytes, { maxBytes: MAX_ENVELOPE_BYTES })
  if (typeof json !== 'object' || json === null)
    throw publisherErrors.STATEMENT_INVALID('the file is JSON, but not an object')
  if ('payloadType' in json) return decodeEnvelope(bytes)
  const type = 'type' in json ? json.type : undefined
  if (!isKind(type))
    throw publisherErrors.STATEMENT_INVALID(
      `its type is ${JSON.stringify(type)}, wanted ${Object.keys(KINDS).join(', ')}`,
    )
  return { payloadType: KINDS[type].payloadType, payload: bytes, signatures: [] }
}

export interface SignPaths {
  /** What is read when `output` is not there yet. */
  readonly input: string
  /** The envelope; signatures are added to it when it is there. */
  readonly output: string
}

/** `path` is a build folder, a bare statement ("x.json" makes "x.signed.json") or an envelope, which is added to. */
export async function signPaths(path: string, output: string | undefined): Promise<SignPaths> {
  const isFolder = await stat(path).then(
    (about) => about.isDirectory(),
    () => false,
  )
  if (isFolder) return { input: join(path, 'statement.json'), output: output ?? join(path, 'release.json') }
  const bytes = await readFile(path)
  const bare = readStatement(bytes).signatures.length === 0
  return { input: path, output: output ?? (bare ? `${path.replace(/\.json$/, '')}.signed.json` : path) }
}

/**
 * Signs with each signer and writes the envelope durably; signatures that others wrote there meanwhile stay.
 * @throws STATEMENT_INVALID, STATEMENT_TOO_LARGE, SIGNATURE_PRESENT, SIGNATURE_REFUSED, ENVELOPE_BUSY, MERGE_OTHER, FILE_*
 */
export async function signFile(paths: SignPaths, signers: readonly Signer[]): Promise<Envelope> {
  let envelope = readStatement(await readFile(paths.input))
  const before = await nodeFiles.read(paths.output, MAX_ENVELOPE_BYTES)
  if (before !== undefined && paths.output !== paths.input) {
    const there = readStatement(before)
    if (there.payloadType !== envelope.payloadType || compareBytes(there.payload, envelope.payload) !== 0)
      throw publisherErrors.STATEMENT_INVALID(`${paths.output} is the envelope of another statement`, {
        next: 'Move it away, then sign again.',
      })
    envelope = there
  }
  for (const signer of signers) envelope = await addSignature(envelope, signer)
  return await addToEnvelopeFile(paths.output, envelope, readStatement)
}

async function readFile(path: string): Promise<Uint8Array> {
  try {
    const bytes = await nodeFiles.read(path, Math.max(MAX_ENVELOPE_BYTES, MAX_SIGNED_BYTES))
    if (bytes !== undefined) return bytes
  } catch (cause) {
    if (isBistableError(cause, 'FILE_TOO_LARGE'))
      throw publisherErrors.STATEMENT_INVALID(`${path} is larger than any statement`, { cause })
    throw cause
  }
  throw publisherErrors.STATEMENT_INVALID(`${path} does not exist`)
}
