import * as v from 'valibot'
import { compareBytes, fromHex } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { decodeEnvelope, MAX_SIGNED_BYTES } from './dsse.ts'
import { checkPublicKey } from './ed25519.ts'
import { keyErrors } from './errors.ts'
import { matchSignatures, unknownSignature } from './threshold.ts'
import type { Envelope, PublicKey, Role, RoleRule, Root, TrustedRoots } from './types.ts'

/** The payload of a root statement: which keys hold which role, from this version on. */

export const ROOT_PAYLOAD_TYPE = 'application/vnd.bistable.root.v1+json'
export const ROLES = ['root', 'release', 'fleet'] as const satisfies readonly Role[]
/** Most keys of one role: bounds the work a hostile chain can ask for. */
export const MAX_KEYS_PER_ROLE = 16

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1))
const roleSchema = v.object({
  threshold: positive,
  keys: v.pipe(v.array(v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/))), v.minLength(1), v.maxLength(MAX_KEYS_PER_ROLE)),
})
export const PRODUCT_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const rootSchema = v.object({
  type: v.literal('root'),
  product: v.pipe(v.string(), v.regex(PRODUCT_NAME)),
  version: positive,
  epoch: count,
  issued: v.pipe(v.string(), v.regex(/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$/), v.check(isRealTime, 'no such time')),
  roles: v.object({ root: roleSchema, release: roleSchema, fleet: roleSchema }),
  critical: v.optional(v.array(v.string())),
})

function isRealTime(text: string): boolean {
  const time = new Date(text)
  return !Number.isNaN(time.getTime()) && time.toISOString() === text.replace('Z', '.000Z')
}

/**
 * Parses the payload of a root statement and checks every rule that one root alone can break. Unknown fields are
 * ignored unless the array `critical` names them. Verify before parsing, wherever there is a key to verify with.
 * @param known keys that passed `checkPublicKey` before; saves the point arithmetic along a chain
 * @throws ROOT_INVALID, KEY_INVALID, and the errors of strict JSON
 */
export function parseRoot(payload: Uint8Array, known: ReadonlySet<PublicKey> = new Set()): Root {
  const parsed = v.safeParse(rootSchema, parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES }))
  if (!parsed.success) {
    const issue = parsed.issues[0]
    throw keyErrors.ROOT_INVALID(`root statement, at '${v.getDotPath(issue) ?? ''}': ${issue.message}`)
  }
  const { critical = [], roles, ...rest } = parsed.output
  const strange = critical.find((name) => !Object.hasOwn(rootSchema.entries, name))
  if (strange !== undefined)
    throw keyErrors.ROOT_INVALID(`the root needs a reader that knows ${JSON.stringify(strange)}`, {
      next: 'Update this program.',
    })
  const taken = new Set<PublicKey>()
  return {
    ...rest,
    roles: {
      root: roleRule('root', roles.root, known, taken),
      release: roleRule('release', roles.release, known, taken),
      fleet: roleRule('fleet', roles.fleet, known, taken),
    },
  }
}

function roleRule(
  role: Role,
  given: { readonly threshold: number; readonly keys: readonly string[] },
  known: ReadonlySet<PublicKey>,
  taken: Set<PublicKey>,
): RoleRule {
  const keys = given.keys.map((text) =>
    known.has(text as PublicKey) ? (text as PublicKey) : checkPublicKey(fromHex(text)),
  )
  for (const key of keys) {
    if (taken.has(key)) throw keyErrors.ROOT_INVALID(`key ${key} is listed twice (the second time for ${role})`)
    taken.add(key)
  }
  if (given.threshold > keys.length)
    throw keyErrors.ROOT_INVALID(`the ${role} role has ${keys.length} keys, its threshold is ${given.threshold}`)
  return { threshold: given.threshold, keys }
}

/** The payload bytes of a root statement. @throws ROOT_INVALID, KEY_INVALID when the root breaks a rule */
export function encodeRoot(root: Root): Uint8Array {
  const rule = ({ threshold, keys }: RoleRule) => ({ threshold, keys })
  const text = JSON.stringify({
    type: root.type,
    product: root.product,
    version: root.version,
    epoch: root.epoch,
    issued: root.issued,
    roles: { root: rule(root.roles.root), release: rule(root.roles.release), fleet: rule(root.roles.fleet) },
  })
  const bytes = new Uint8Array(Buffer.from(text))
  parseRoot(bytes)
  return bytes
}

export const MAX_ROOTS = 1024

interface Link {
  readonly bytes: Uint8Array
  readonly envelope: Envelope
}

/**
 * Walks a chain of root envelopes, oldest first, and returns what may be trusted from now on.
 *
 * Each version follows the one before by exactly one and is signed by a threshold of both; every signature present
 * is by a key of one of the two; the product stays, the epoch never falls.
 *
 * Without `trusted` the first root vouches for itself only: the caller compares it with an anchor of its own.
 * With `trusted` the chain must share a version with it, payload for payload, or begin with the next version. A chain
 * that ends earlier is fine as long as it agrees; the result is then `trusted` itself. Versions before the first
 * trusted one must hold among themselves, and are otherwise not believed or kept.
 * @param chain exact envelope bytes, at most 1024
 * @throws ROOT_*, SIGNATURE_UNKNOWN, SIGNATURE_THRESHOLD, STATEMENT_TYPE, ENVELOPE_*, KEY_INVALID
 */
export function walkRoots(chain: readonly Uint8Array[], trusted?: TrustedRoots): TrustedRoots {
  if (chain.length === 0 || chain.length > MAX_ROOTS)
    throw keyErrors.ROOT_CHAIN_LENGTH(`the root chain has ${chain.length} versions, wanted 1 to ${MAX_ROOTS}`)
  const links = chain.map(decodeLink)
  const anchors = trusted?.envelopes.map(decodeLink) ?? []
  const first = trusted === undefined ? 1 : trusted.current.version - anchors.length + 1
  const known = new Set(ROLES.flatMap((role) => [...(trusted?.everListed[role] ?? [])]))

  let previous = rootBefore(links, anchors, trusted, known)
  const added: { bytes: Uint8Array; root: Root }[] = []
  for (const [i, link] of links.entries()) {
    // Where the trusted roots know this version already, its payload must be theirs.
    const twin =
      previous === undefined ? (i === 0 ? twinOf(link, anchors) : undefined) : anchors[previous.version + 1 - first]
    if (i === 0 && previous !== undefined && previous === trusted?.current) requireRelated(link, previous)
    const root: Root = verifyLink(link, previous, twin, known)
    for (const role of ROLES) for (const key of root.roles[role].keys) known.add(key)
    if (trusted === undefined || root.version > trusted.current.version) added.push({ bytes: link.bytes, root })
    previous = root
  }
  return extend(trusted, added)
}

/** What a device holds from the start: the root envelope that its image carries. Trusted because of where it lies. */
export function trustAnchor(envelopeBytes: Uint8Array): TrustedRoots {
  return walkRoots([envelopeBytes])
}

function decodeLink(bytes: Uint8Array): Link {
  const envelope = decodeEnvelope(bytes)
  if (envelope.payloadType !== ROOT_PAYLOAD_TYPE)
    throw keyErrors.STATEMENT_TYPE(`found a statement of type ${envelope.payloadType}, wanted ${ROOT_PAYLOAD_TYPE}`)
  return { bytes, envelope }
}

const samePayload = (a: Link, b: Link) => compareBytes(a.envelope.payload, b.envelope.payload) === 0
const twinOf = (link: Link, anchors: readonly Link[]) => anchors.find((anchor) => samePayload(anchor, link))

/** The root that must have signed the first link; undefined when that one can only vouch for itself. */
function rootBefore(
  links: readonly Link[],
  anchors: readonly Link[],
  trusted: TrustedRoots | undefined,
  known: ReadonlySet<PublicKey>,
): Root | undefined {
  const [head] = links
  const [oldest] = anchors
  if (trusted === undefined || head === undefined || oldest === undefined) return undefined
  const at = anchors.findIndex((anchor) => samePayload(anchor, head))
  if (at === 0) return undefined
  const before = anchors[at - 1]
  if (before !== undefined) return parseRoot(before.envelope.payload, known)
  // Only a chain that leads up to the oldest trusted version may begin before it.
  const meets = links.findIndex((link) => samePayload(link, oldest))
  return meets > 0 && meets < parseRoot(oldest.envelope.payload, known).version ? undefined : trusted.current
}

function verifyLink(
  link: Link,
  previous: Root | undefined,
  twin: Link | undefined,
  known: ReadonlySet<PublicKey>,
): Root {
  const { envelope } = link
  if (twin !== undefined && !samePayload(link, twin))
    throw keyErrors.ROOT_FORK(`a second, different root ${(previous?.version ?? 0) + 1} was offered`)
  if (twin !== undefined && compareBytes(link.bytes, twin.bytes) === 0) return parseRoot(envelope.payload, known)

  // The older root's keys first: until they have vouched for the payload, it is not looked into.
  if (previous !== undefined)
    requireRootThreshold(previous, matchSignatures(envelope, previous.roles.root.keys).signers)
  const root = parseRoot(envelope.payload, known)
  if (previous !== undefined) requireSuccessor(previous, root)
  const { signers, unknown } = matchSignatures(envelope, [
    ...new Set([...root.roles.root.keys, ...(previous?.roles.root.keys ?? [])]),
  ])
  requireRootThreshold(root, signers)
  // An anchor that is not version 1 is also signed by its predecessor's keys, which nobody here can know.
  const vouched = previous === undefined && root.version > 1 ? (twin?.envelope.signatures ?? unknown) : []
  if (unknown.some((signature) => !vouched.some((other) => compareBytes(signature, other) === 0)))
    throw unknownSignature(`the root keys of version ${root.version} and the one before`)
  return root
}

/** Most often a file of another product: said in other words than that a root lacks a signature. */
function requireRelated(link: Link, trusted: Root): void {
  if (matchSignatures(link.envelope, trusted.roles.root.keys).signers.size === 0)
    throw keyErrors.SIGNATURE_THRESHOLD(
      `the roots found neither hold root ${trusted.version} of '${trusted.product}', which is trusted, nor are signed by its keys`,
      { next: 'Use a file of this product; if it is one, publish it with every root since the trusted one.' },
    )
}

function requireRootThreshold(root: Root, signers: ReadonlySet<PublicKey>): void {
  const { keys, threshold } = root.roles.root
  const signed = keys.filter((key) => signers.has(key)).length
  if (signed < threshold)
    throw keyErrors.SIGNATURE_THRESHOLD(`${signed} of the root keys in root ${root.version} signed, ${threshold} must`)
}

function requireSuccessor(previous: Root, root: Root): void {
  // First, since roots of two products that share their keys differ in version as well.
  if (root.product !== previous.product)
    throw keyErrors.ROOT_PRODUCT(`root ${root.version} is for '${root.product}', wanted '${previous.product}'`)
  if (root.version === previous.version) throw keyErrors.ROOT_FORK(`found a second root ${root.version}`)
  if (root.version !== previous.version + 1)
    throw keyErrors.ROOT_VERSION(`found root ${root.version} after root ${previous.version}`)
  if (root.epoch < previous.epoch)
    throw keyErrors.ROOT_EPOCH(`root ${root.version} has epoch ${root.epoch}, the one before ${previous.epoch}`)
}

function extend(
  trusted: TrustedRoots | undefined,
  added: readonly { readonly bytes: Uint8Array; readonly root: Root }[],
): TrustedRoots {
  const current = added.at(-1)?.root ?? trusted?.current
  if (current === undefined) throw keyErrors.ROOT_CHAIN_LENGTH('the root chain is empty')
  if (trusted !== undefined && added.length === 0) return trusted
  const ever = (role: Role): ReadonlySet<PublicKey> =>
    new Set([...(trusted?.everListed[role] ?? []), ...added.flatMap(({ root }) => root.roles[role].keys)])
  return {
    envelopes: [...(trusted?.envelopes ?? []), ...added.map(({ bytes }) => bytes)],
    current,
    everListed: { root: ever('root'), release: ever('release'), fleet: ever('fleet') },
  }
}
