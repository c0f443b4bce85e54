import * as v from 'valibot'
import { MiB, type Sha256 } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { decodeEnvelope, MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { keyErrors } from '../keys/errors.ts'
import { verifyEnvelope } from '../keys/threshold.ts'
import type { TrustedRoots } from '../keys/types.ts'
import { addonErrors } from './addon-errors.ts'
import { sha256 } from './digest.ts'
import { complaints, digest, name, positive, strangeCriticalNames, time } from './fields.ts'
import { MAX_ENVELOPE_MEMBER } from './layout.ts'
import { fixName } from './system.ts'
import { BLOCK } from './tree.ts'

/**
 * The add-on statement: signed by the release role, under the same rule as a release. It names one small SquashFS image that
 * lies over /usr of exactly the releases it was made for, until it expires.
 */

export const ADDON_PAYLOAD_TYPE = 'application/vnd.bistable.addon.v1+json'
export const MAX_ADDON_BYTES = 1024 * MiB
/** One block alone has no tree behind it, and dm-verity wants one. */
export const MIN_ADDON_BYTES = 2 * BLOCK

export interface AddonStatement {
  readonly type: 'addon'
  readonly product: string
  /** Also the name of the system extension. */
  readonly name: string
  /** `fix`: stands in for a release to come. `debug`: tools for one release. */
  readonly kind: 'fix' | 'debug'
  /** For people. */
  readonly summary: string
  /** SHA-256 of the statements of the releases that it was made for. */
  readonly bases: readonly Sha256[]
  /** What it fixes; a release that lists all of these in `fixes` of system.json needs it no more. */
  readonly fixes: readonly string[]
  readonly image: { readonly length: number; readonly root: Sha256 }
  readonly rootVersion: number
  readonly issued: string
  readonly expires: string
}

const fields = v.object({
  type: v.literal('addon'),
  product: name,
  // Lower-case, so that it is one name on any file system and in any tool.
  name: v.pipe(v.string(), v.regex(/^[a-z0-9][a-z0-9._-]{0,47}$/, 'wanted 1 to 48 of a-z 0-9 . _ -')),
  kind: v.picklist(['fix', 'debug']),
  summary: v.pipe(v.string(), v.regex(/^[ -~]{1,200}$/, 'wanted 1 to 200 printable ASCII characters')),
  bases: v.pipe(
    v.array(digest),
    v.minLength(1),
    v.maxLength(16),
    v.check((list) => new Set(list).size === list.length, 'a release is listed twice'),
  ),
  fixes: v.pipe(v.array(fixName), v.maxLength(16)),
  image: v.object({
    length: v.pipe(
      positive,
      v.multipleOf(BLOCK, `wanted a multiple of ${BLOCK}`),
      v.minValue(MIN_ADDON_BYTES),
      v.maxValue(MAX_ADDON_BYTES),
    ),
    root: digest,
  }),
  rootVersion: positive,
  issued: time,
  expires: time,
})

const statement = v.pipe(
  fields,
  v.check(({ issued, expires }) => issued < expires, 'expires is not after issued'),
  v.check(({ kind, bases }) => kind === 'fix' || bases.length === 1, 'a debug add-on is for exactly one release'),
  v.check(({ kind, fixes }) => kind === 'debug' || fixes.length > 0, 'a fix names what it fixes'),
)

/**
 * Parses the payload of an add-on envelope. Verify the envelope with the release role first. Unknown fields are ignored
 * unless the optional array `critical` lists them.
 * @throws ADDON_INVALID naming every bad field, and the errors of strict JSON
 */
export function parseAddon(payload: Uint8Array): AddonStatement {
  const json = parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES })
  const strange = strangeCriticalNames(json, fields.entries)
  if (strange.length > 0)
    throw addonErrors.ADDON_INVALID(`the add-on needs a reader that knows ${JSON.stringify(strange)}`)
  return validate(json)
}

/** The payload bytes of an add-on, fields in fixed order. @throws ADDON_INVALID */
export function encodeAddon(addon: AddonStatement): Uint8Array {
  const valid = validate(addon)
  const { type, product, kind, summary, bases, fixes, image, rootVersion, issued, expires } = valid
  const { length, root } = image
  const order = { type, product, name: valid.name, kind, summary, bases, fixes, image: { length, root } }
  return new Uint8Array(Buffer.from(JSON.stringify({ ...order, rootVersion, issued, expires })))
}

function validate(json: unknown): AddonStatement {
  const parsed = v.safeParse(statement, json)
  if (!parsed.success) throw addonErrors.ADDON_INVALID(`add-on: ${complaints(parsed.issues)}`)
  return parsed.output
}

export interface AuthenticAddon {
  readonly statement: AddonStatement
  /** SHA-256 of its payload. */
  readonly digest: Sha256
}

/**
 * Verifies an add-on's envelope with the release role, and only then parses it.
 * @throws the errors of keys/; ADDON_INVALID, also for another product
 */
export function authenticateAddon(bytes: Uint8Array, trusted: TrustedRoots): AuthenticAddon {
  const envelope = decodeEnvelope(bytes, { maxBytes: MAX_ENVELOPE_MEMBER })
  if (envelope.payloadType !== ADDON_PAYLOAD_TYPE)
    throw keyErrors.STATEMENT_TYPE(`found a statement of type ${envelope.payloadType}, wanted ${ADDON_PAYLOAD_TYPE}`)
  verifyEnvelope(envelope, 'release', trusted)
  const addon = parseAddon(envelope.payload)
  const { product, version } = trusted.current
  if (addon.product !== product)
    throw addonErrors.ADDON_INVALID(`the add-on is for '${addon.product}', its root for '${product}'`)
  if (addon.rootVersion > version)
    throw addonErrors.ADDON_INVALID(`the add-on asks for root ${addon.rootVersion}, the newest here is ${version}`)
  return { statement: addon, digest: sha256(envelope.payload) }
}

export interface AddonFacts {
  /** SHA-256 of the running release's statement; undefined: not known. */
  readonly release: Sha256 | undefined
  readonly product: string
  /** What the running release says it contains. */
  readonly contains: readonly string[]
  /** On trial, a release proves nothing yet. */
  readonly committed: boolean
  /** Milliseconds since 1970 that have passed for certain. */
  readonly now: number
}

export type AddonVerdict =
  | { readonly use: 'active' }
  /** Kept, and not over /usr: another release runs. */
  | { readonly use: 'inactive'; readonly code: 'ADDON_BASE'; readonly message: string }
  /** Taken off the device. */
  | {
      readonly use: 'drop'
      readonly code: 'ADDON_EXPIRED' | 'ADDON_CONTAINED' | 'ADDON_INVALID'
      readonly message: string
    }

/** Whether an authentic add-on counts on this device now. Pure. */
export function judgeAddon(addon: AddonStatement, facts: AddonFacts): AddonVerdict {
  if (addon.product !== facts.product)
    return { use: 'drop', code: 'ADDON_INVALID', message: `it is for '${addon.product}', this is '${facts.product}'` }
  if (Date.parse(addon.expires) <= facts.now)
    return { use: 'drop', code: 'ADDON_EXPIRED', message: `it expired at ${addon.expires}` }
  const contained = addon.fixes.length > 0 && addon.fixes.every((fix) => facts.contains.includes(fix))
  if (contained && facts.committed) {
    const message = `the running release contains ${addon.fixes.join(', ')}`
    return { use: 'drop', code: 'ADDON_CONTAINED', message }
  }
  if (facts.release !== undefined && addon.bases.includes(facts.release)) return { use: 'active' }
  return { use: 'inactive', code: 'ADDON_BASE', message: 'it was made for another release than the one that runs' }
}
