import type { Sha256 } from '../base/bytes.ts'
import { decodeEnvelope } from '../keys/dsse.ts'
import { keyErrors } from '../keys/errors.ts'
import { parseRoot, walkRoots } from '../keys/root.ts'
import { verifyEnvelope } from '../keys/threshold.ts'
import type { PublicKey, TrustedRoots } from '../keys/types.ts'
import { ASSIGNMENT_PAYLOAD_TYPE, parseAssignment } from './assignment.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { compareNumbers, formatNumber } from './fields.ts'
import { MAX_ENVELOPE_MEMBER, rootName } from './layout.ts'
import { parseRelease } from './release.ts'
import { type AuthenticAssignment, RELEASE_PAYLOAD_TYPE, type ReleaseStatement } from './types.ts'

export interface Authentic {
  readonly trusted: TrustedRoots
  readonly statement: ReleaseStatement
  /** SHA-256 of the statement's payload. */
  readonly digest: Sha256
  /** The keys of the newest root that signed the release. */
  readonly signedBy: readonly PublicKey[]
}

/**
 * Verifies a release envelope under a root chain, and only then parses it. Without `trusted` the chain vouches for
 * itself, which proves nothing about who made it.
 * @throws the errors of keys/; BUNDLE_ROOTS, BUNDLE_PRODUCT, BUNDLE_EPOCH; RELEASE_INVALID, RELEASE_CRITICAL
 */
export function authenticate(
  roots: readonly Uint8Array[],
  envelopeBytes: Uint8Array,
  trustedBefore: TrustedRoots | undefined,
): Authentic {
  const trusted = walkRoots(roots, trustedBefore)
  const envelope = decodeEnvelope(envelopeBytes, { maxBytes: MAX_ENVELOPE_MEMBER })
  if (envelope.payloadType !== RELEASE_PAYLOAD_TYPE)
    throw keyErrors.STATEMENT_TYPE(`found a statement of type ${envelope.payloadType}, wanted ${RELEASE_PAYLOAD_TYPE}`)
  const signedBy = verifyEnvelope(envelope, 'release', trusted)
  const statement = parseRelease(envelope.payload)
  const { current } = trusted
  if (statement.product !== current.product)
    throw bundleErrors.BUNDLE_PRODUCT(`the release is for '${statement.product}', its root for '${current.product}'`)
  if (statement.rootVersion > current.version)
    throw bundleErrors.BUNDLE_ROOTS(
      `the release asks for root ${statement.rootVersion}, the newest here is ${current.version}`,
    )
  // Only root opens an epoch: otherwise a stolen release key could claim the highest one and burn all numbers.
  if (statement.number.epoch > current.epoch)
    throw bundleErrors.BUNDLE_EPOCH(
      `the release is numbered ${formatNumber(statement.number)}, the newest epoch of root is ${current.epoch}`,
    )
  return { trusted, statement, digest: sha256(envelope.payload), signedBy }
}

/** The version a root envelope's payload states. Call it on envelopes of a walked chain. */
export function rootVersion(envelopeBytes: Uint8Array, trusted: TrustedRoots): number {
  const known = new Set([...trusted.everListed.root, ...trusted.everListed.release, ...trusted.everListed.fleet])
  return parseRoot(decodeEnvelope(envelopeBytes).payload, known).version
}

/** The members of a root chain are named by the versions they hold. The walk has shown that these are consecutive. */
export function checkRootNames(first: number, roots: readonly Uint8Array[], trusted: TrustedRoots): void {
  const [head] = roots
  const found = head === undefined ? 0 : rootVersion(head, trusted)
  if (found !== first) throw bundleErrors.BUNDLE_ROOTS(`member ${rootName(first)} holds root version ${found}`)
}

/**
 * Verifies an assignment with the fleet role, and only then parses it. Whose it is, whether it is new and whether it is
 * time, only the device can say.
 * @throws the errors of keys/; ASSIGNMENT_INVALID, ASSIGNMENT_CRITICAL; ASSIGNMENT_RELEASE for another product
 */
export function authenticateAssignment(bytes: Uint8Array, trusted: TrustedRoots): AuthenticAssignment {
  const envelope = decodeEnvelope(bytes, { maxBytes: MAX_ENVELOPE_MEMBER })
  if (envelope.payloadType !== ASSIGNMENT_PAYLOAD_TYPE)
    throw keyErrors.STATEMENT_TYPE(`found a ${envelope.payloadType}, wanted ${ASSIGNMENT_PAYLOAD_TYPE}`)
  verifyEnvelope(envelope, 'fleet', trusted)
  const statement = parseAssignment(envelope.payload)
  const { product } = trusted.current
  if (statement.product !== product)
    throw bundleErrors.ASSIGNMENT_RELEASE(`the assignment is for '${statement.product}', its root for '${product}'`)
  return { statement, digest: sha256(envelope.payload) }
}

/** Refuses an assignment that stands in the bundle of another release. @throws ASSIGNMENT_RELEASE */
export function checkAssigned(assignment: AuthenticAssignment, release: Authentic): void {
  const { statement } = assignment
  const { number } = release.statement
  if (statement.release !== release.digest || compareNumbers(statement.number, number) !== 0)
    throw bundleErrors.ASSIGNMENT_RELEASE(
      `the assignment names release ${formatNumber(statement.number)} ${statement.release}, the bundle is ${formatNumber(number)} ${release.digest}`,
    )
}
