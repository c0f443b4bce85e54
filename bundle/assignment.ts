import * as v from 'valibot'
import type { Sha256 } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { bundleErrors } from './errors.ts'
import { complaints, digest, name, positive, releaseNumber, strangeCriticalNames, time } from './fields.ts'
import { isSafePath } from './freshness.ts'
import type { ReleaseNumber } from './types.ts'

/**
 * The assignment: a fleet-signed word to one device, which release it shall run. It chooses among releases and never
 * vouches for one: the release's own signatures, hardware list and floors are checked as ever.
 */

export const ASSIGNMENT_PAYLOAD_TYPE = 'application/vnd.bistable.assignment.v1+json'

export interface AssignmentStatement {
  readonly type: 'assignment'
  readonly product: string
  /** The one device that this is for. */
  readonly device: string
  /** 1, 2, 3, …; a device refuses one below the highest it has accepted. Gaps are fine. */
  readonly sequence: number
  /** SHA-256 of the release statement's payload. */
  readonly release: Sha256
  readonly number: ReleaseNumber
  /** The published bundle, as in a freshness statement; absent in an assignment that travels inside its bundle. */
  readonly bundle?: { readonly path: string; readonly size: number }
  readonly issued: string
  /** Nothing is installed before this time. */
  readonly notBefore?: string
  /** From this time on it counts for nothing; null: until a higher sequence replaces it. */
  readonly expires: string | null
  /** True lets the device take this release below its install floor. The security floor stands. */
  readonly allowDowngrade: boolean
}

const fields = v.object({
  type: v.literal('assignment'),
  product: name,
  device: name,
  sequence: positive,
  release: digest,
  number: releaseNumber,
  bundle: v.exactOptional(
    v.object({
      path: v.pipe(v.string(), v.check(isSafePath, 'wanted a relative path of plain names')),
      size: positive,
    }),
  ),
  issued: time,
  notBefore: v.exactOptional(time),
  expires: v.nullable(time),
  allowDowngrade: v.boolean(),
})

const statement = v.pipe(
  fields,
  v.check(({ issued, expires }) => expires === null || issued < expires, 'expires is not after issued'),
  v.check(
    ({ notBefore, expires }) => notBefore === undefined || expires === null || notBefore < expires,
    'expires is not after notBefore',
  ),
)

/**
 * Parses the payload of an assignment envelope. Verify the envelope with the fleet role first; device, sequence and
 * time are the caller's to judge. Unknown fields are ignored unless the optional array `critical` lists them.
 * @throws ASSIGNMENT_INVALID naming every bad field, ASSIGNMENT_CRITICAL, and the errors of strict JSON
 */
export function parseAssignment(payload: Uint8Array): AssignmentStatement {
  const json = parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES })
  const strange = strangeCriticalNames(json, fields.entries)
  if (strange.length > 0)
    throw bundleErrors.ASSIGNMENT_CRITICAL(`the assignment needs a reader that knows ${JSON.stringify(strange)}`)
  return validate(json)
}

/** The payload bytes of an assignment, fields in fixed order. @throws ASSIGNMENT_INVALID */
export function encodeAssignment(assignment: AssignmentStatement): Uint8Array {
  const { type, product, device, sequence, release, number, bundle, issued, notBefore, expires, allowDowngrade } =
    validate(assignment)
  const { epoch, counter } = number
  const text = {
    type,
    product,
    device,
    sequence,
    release,
    number: { epoch, counter },
    ...(bundle === undefined ? {} : { bundle: { path: bundle.path, size: bundle.size } }),
    issued,
    ...(notBefore === undefined ? {} : { notBefore }),
    expires,
    allowDowngrade,
  }
  return new Uint8Array(Buffer.from(JSON.stringify(text)))
}

function validate(json: unknown): AssignmentStatement {
  const parsed = v.safeParse(statement, json)
  if (!parsed.success) throw bundleErrors.ASSIGNMENT_INVALID(`assignment: ${complaints(parsed.issues)}`)
  return parsed.output
}
