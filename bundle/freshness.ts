import * as v from 'valibot'
import type { Sha256 } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { bundleErrors } from './errors.ts'
import { complaints, digest, name, positive, releaseNumber, time } from './fields.ts'
import type { ReleaseNumber } from './types.ts'

/** The freshness statement of a channel: fleet-signed, short-lived. It may choose among releases, never vouch for one. */

export const FRESHNESS_PAYLOAD_TYPE = 'application/vnd.bistable.freshness.v1+json'

export interface FreshnessStatement {
  readonly type: 'freshness'
  readonly product: string
  readonly channel: string
  /** The newest release of this channel. */
  readonly number: ReleaseNumber
  /** SHA-256 of that release statement's payload. */
  readonly release: Sha256
  /** Where its bundle is: relative to the publish directory, checked by `isSafePath`. */
  readonly path: string
  /** Bytes of the bundle. */
  readonly size: number
  /** The newest root version. */
  readonly rootVersion: number
  readonly issued: string
  readonly expires: string
  /** Patches that lead to this release, at most 8; absent when there are none. */
  readonly deltas?: readonly AnnouncedDelta[]
}

/** A patch file beside the bundle. It is named so that damage is found early; what it yields is checked anyway. */
export interface AnnouncedDelta {
  /** Digest of the release that it starts from. */
  readonly from: Sha256
  /** Relative to the publish directory, as `path` above. */
  readonly path: string
  readonly size: number
  /** Its first `length` bytes, which hold the digests of all others. */
  readonly head: { readonly length: number; readonly sha256: Sha256 }
}

/** As many as fit a signed statement. */
export const MAX_DELTAS = 8

/** A path that stays below the place it is joined to, in any URL or file system: plain names, no dots-only parts. */
export function isSafePath(path: string): boolean {
  return path.length <= 255 && /^[A-Za-z0-9_][A-Za-z0-9._-]*(?:\/[A-Za-z0-9_][A-Za-z0-9._-]*)*$/.test(path)
}

const safePath = v.pipe(v.string(), v.check(isSafePath, 'wanted a relative path of plain names'))

const statement = v.pipe(
  v.object({
    type: v.literal('freshness'),
    product: name,
    channel: name,
    number: releaseNumber,
    release: digest,
    path: safePath,
    size: positive,
    rootVersion: positive,
    issued: time,
    expires: time,
    deltas: v.exactOptional(
      v.pipe(
        v.array(
          v.object({
            from: digest,
            path: safePath,
            size: positive,
            head: v.object({ length: positive, sha256: digest }),
          }),
        ),
        v.maxLength(MAX_DELTAS),
      ),
    ),
  }),
  v.check(({ issued, expires }) => issued < expires, 'expires is not after issued'),
)

/**
 * Parses the payload of a freshness envelope. Verify the envelope with the fleet role first; expiry is the caller's
 * to judge. Unknown fields are ignored.
 * @throws FRESHNESS_INVALID naming every bad field, and the errors of strict JSON
 */
export function parseFreshness(payload: Uint8Array): FreshnessStatement {
  return validate(parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES }))
}

/** The payload bytes of a freshness statement, fields in fixed order. @throws FRESHNESS_INVALID */
export function encodeFreshness(freshness: FreshnessStatement): Uint8Array {
  const { type, product, channel, number, release, path, size, rootVersion, issued, expires, deltas } =
    validate(freshness)
  const { epoch, counter } = number
  const named = deltas?.map(({ from, path, size, head: { length, sha256 } }) => {
    return { from, path, size, head: { length, sha256 } }
  })
  const text = {
    ...{ type, product, channel, number: { epoch, counter }, release, path, size, rootVersion, issued, expires },
    ...(named === undefined ? {} : { deltas: named }),
  }
  return new Uint8Array(Buffer.from(JSON.stringify(text)))
}

function validate(json: unknown): FreshnessStatement {
  const parsed = v.safeParse(statement, json)
  if (!parsed.success) throw bundleErrors.FRESHNESS_INVALID(`freshness statement: ${complaints(parsed.issues)}`)
  return parsed.output
}
