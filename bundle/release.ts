import * as v from 'valibot'
import { MiB } from '../base/bytes.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { indexSize, MAX_INDEX_BYTES } from './chunks.ts'
import { bundleErrors } from './errors.ts'
import {
  compareNumbers,
  complaints,
  count,
  digest,
  name,
  positive,
  releaseNumber,
  strangeCriticalNames,
  time,
  unknownFields,
} from './fields.ts'
import { BLOCK } from './tree.ts'
import { ATTACHMENT_NAMES, IMAGE_NAMES, type ReleaseStatement } from './types.ts'

/** The release statement: the small signed text that names a release's images. */

export const MAX_ATTACHMENT_STORED = 64 * MiB
export const MAX_ATTACHMENT_UNPACKED = 512 * MiB
/** zstd level of attachments: its window is within the reader's 8 MiB. A patch rebuilds their stored bytes, so another level is another release. */
export const ATTACHMENT_LEVEL = 9

const image = v.pipe(
  v.object({
    name: v.picklist(IMAGE_NAMES),
    length: v.pipe(positive, v.multipleOf(BLOCK, `wanted a multiple of ${BLOCK}`)),
    root: digest,
    index: v.object({
      length: v.pipe(
        positive,
        v.minValue(indexSize(1)),
        v.maxValue(MAX_INDEX_BYTES),
        v.check((bytes) => (bytes - indexSize(0)) % (indexSize(1) - indexSize(0)) === 0, 'no index has this length'),
      ),
      sha256: digest,
    }),
    data: v.object({ length: positive }),
  }),
  v.check((entry) => entry.data.length <= entry.length, 'data is longer than the image'),
)

const attachment = v.object({
  name: v.picklist(ATTACHMENT_NAMES),
  length: v.pipe(positive, v.maxValue(MAX_ATTACHMENT_STORED)),
  sha256: digest,
  unpacked: v.pipe(count, v.maxValue(MAX_ATTACHMENT_UNPACKED)),
})

const fields = v.object({
  type: v.literal('release'),
  product: name,
  hardware: v.pipe(
    v.array(name),
    v.minLength(1),
    v.maxLength(16),
    v.check((list) => new Set(list).size === list.length, 'a name is listed twice'),
  ),
  number: releaseNumber,
  version: v.pipe(v.string(), v.regex(/^[!-~](?:[ -~]{0,62}[!-~])?$/, 'wanted 1 to 64 printable ASCII characters')),
  securityFloor: releaseNumber,
  rootVersion: positive,
  issued: time,
  images: v.pipe(
    v.array(image),
    v.check(
      (list) => list.map((entry) => entry.name).join() === IMAGE_NAMES.join(),
      `wanted exactly ${IMAGE_NAMES.join(', ')}, in this order`,
    ),
  ),
  attachments: v.pipe(
    v.array(attachment),
    v.check(
      (list) => {
        const at = list.map((entry) => ATTACHMENT_NAMES.indexOf(entry.name))
        return at.every((position, i) => i === 0 || position > (at[i - 1] ?? -1))
      },
      `wanted each of ${ATTACHMENT_NAMES.join(', ')} at most once, in this order`,
    ),
  ),
})

const statement = v.pipe(
  v.object({ ...fields.entries, critical: v.optional(v.array(v.string())) }),
  v.check((release) => compareNumbers(release.securityFloor, release.number) <= 0, 'securityFloor is above number'),
)

/**
 * Parses the payload of a release envelope. Verify the envelope first. Unknown fields are ignored
 * (`unknownReleaseFields` names them) unless the optional array `critical` lists them.
 * @throws RELEASE_INVALID naming every bad field, RELEASE_CRITICAL, and the errors of strict JSON
 */
export function parseRelease(payload: Uint8Array): ReleaseStatement {
  const json = parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES })
  const strange = strangeCriticalNames(json, fields.entries)
  if (strange.length > 0)
    throw bundleErrors.RELEASE_CRITICAL(`the release needs a reader that knows ${JSON.stringify(strange)}`)
  return validate(json)
}

/** The fields of a payload that `parseRelease` ignored, as paths: "images.0.colour". */
export function unknownReleaseFields(payload: Uint8Array): readonly string[] {
  const json = parseStrictJson(payload, { maxBytes: MAX_SIGNED_BYTES })
  return unknownFields(json, parseRelease(payload)).filter((path) => path !== 'critical')
}

/** The payload bytes of a release statement, fields in fixed order. @throws RELEASE_INVALID naming every bad field */
export function encodeRelease(release: ReleaseStatement): Uint8Array {
  validate(release)
  const { number, securityFloor } = release
  const text = JSON.stringify({
    type: release.type,
    product: release.product,
    hardware: release.hardware,
    number: { epoch: number.epoch, counter: number.counter },
    version: release.version,
    securityFloor: { epoch: securityFloor.epoch, counter: securityFloor.counter },
    rootVersion: release.rootVersion,
    issued: release.issued,
    images: release.images.map(({ name, length, root, index, data }) => ({
      name,
      length,
      root,
      index: { length: index.length, sha256: index.sha256 },
      data: { length: data.length },
    })),
    attachments: release.attachments.map(({ name, length, sha256, unpacked }) => ({ name, length, sha256, unpacked })),
  })
  return new Uint8Array(Buffer.from(text))
}

function validate(json: unknown): ReleaseStatement {
  const parsed = v.safeParse(statement, json)
  if (!parsed.success) throw bundleErrors.RELEASE_INVALID(`release statement: ${complaints(parsed.issues)}`)
  const { critical: _, ...release } = parsed.output
  return release
}
