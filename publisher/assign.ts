import { join } from 'node:path'
import { nodeFiles, writeFileDurably } from '../base/durable.ts'
import { ASSIGNMENT_PAYLOAD_TYPE, type AssignmentStatement, encodeAssignment } from '../bundle/assignment.ts'
import { authenticateAssignment } from '../bundle/authentic.ts'
import { formatNumber } from '../bundle/fields.ts'
import type { BundleHead } from '../bundle/types.ts'
import { encodeEnvelope, MAX_ENVELOPE_BYTES } from '../keys/dsse.ts'
import type { Signer, TrustedRoots } from '../keys/types.ts'
import { publisherErrors } from './errors.ts'
import { sweepLeftovers } from './leftovers.ts'
import { bundleName, copyBundle, isoTime, type PublishEdge, signAsFleet } from './publish.ts'
import { aloneIn } from './site-lock.ts'

/** Directed mode: tells one device which release to run. The bundle is copied first, the word about it written last. */

export interface AssignRequest {
  readonly bundle: string
  readonly device: string
  /** One above what the publish folder holds for this device, unless told. */
  readonly sequence?: number
  /** The publish folder. */
  readonly to: string
  readonly signers: readonly Signer[]
  readonly trusted?: TrustedRoots
  /** Milliseconds since 1970. */
  readonly now: number
  /** "2026-11-21T00:00:00Z"; undefined: at once. */
  readonly notBefore?: string
  /** Undefined: until a higher sequence replaces it. */
  readonly validSeconds?: number
  readonly allowDowngrade: boolean
}

/**
 * Verifies and copies the bundle, then writes `assignments/DEVICE.json`, which `pack --assignment` takes as well.
 * @throws PUBLISH_SEQUENCE, PUBLISH_DIRECTED, PUBLISH_KEY, ASSIGNMENT_INVALID, the errors of `verifyBundle`, FILE_*
 */
export async function assign(request: AssignRequest, edge: PublishEdge): Promise<AssignmentStatement> {
  const { device, now, notBefore, validSeconds, allowDowngrade } = request
  const folder = join(request.to, 'assignments')
  await nodeFiles.makeDir(join(request.to, 'bundles'))
  await nodeFiles.makeDir(folder)
  await sweepLeftovers(join(request.to, 'bundles'))
  const head = await copyBundle(request.bundle, join(request.to, 'bundles'), request.trusted, edge)
  const statement: AssignmentStatement = {
    type: 'assignment',
    product: head.statement.product,
    device,
    sequence: request.sequence ?? 1,
    release: head.digest,
    number: head.statement.number,
    bundle: { path: `bundles/${bundleName(head)}`, size: head.size },
    issued: isoTime(now),
    ...(notBefore === undefined ? {} : { notBefore }),
    expires: validSeconds === undefined ? null : isoTime(now + validSeconds * 1000),
    allowDowngrade,
  }
  // Before the device becomes a file name: its form is checked by the statement's rules.
  encodeAssignment(statement)
  const path = join(folder, `${device}.json`)
  return await aloneIn(request.to, edge, async () => {
    const present = await readPresent(path, head)
    const sequence = request.sequence ?? (present ?? 0) + 1
    if (present !== undefined && sequence <= present)
      throw publisherErrors.PUBLISH_SEQUENCE(`${path} has the sequence ${present}, ${sequence} would be refused`)
    const done = { ...statement, sequence }
    const envelope = await signAsFleet(ASSIGNMENT_PAYLOAD_TYPE, encodeAssignment(done), request.signers, head.trusted)
    await writeFileDurably(path, encodeEnvelope(envelope))
    edge.say(`device ${device}: ${formatNumber(done.number)}, sequence ${sequence}`)
    return done
  })
}

/** The sequence that stands there. One that the newest fleet keys did not sign counts for no device any more. */
async function readPresent(path: string, head: BundleHead): Promise<number | undefined> {
  const bytes = await nodeFiles.read(path, MAX_ENVELOPE_BYTES)
  if (bytes === undefined) return undefined
  try {
    return authenticateAssignment(bytes, head.trusted).statement.sequence
  } catch (cause) {
    const sentence = cause instanceof Error ? cause.message : String(cause)
    throw publisherErrors.PUBLISH_SEQUENCE(`${path}: ${sentence}`, {
      cause,
      next: 'Move the file away; give a --sequence above the highest that the device has accepted.',
    })
  }
}
