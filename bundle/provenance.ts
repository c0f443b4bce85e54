import * as v from 'valibot'
import { MiB } from '../base/bytes.ts'
import { isBistableError } from '../base/errors.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import type { ReleaseStatement } from './types.ts'

/**
 * The provenance attachment: an in-toto Statement v1 with a SLSA provenance v1 predicate
 * (slsa.dev/spec/v1.0/provenance). It is bound by digest in the signed statement; here its subjects are held against the
 * images of that statement.
 */

export const IN_TOTO_STATEMENT = 'https://in-toto.io/Statement/v1'
export const SLSA_PROVENANCE = 'https://slsa.dev/provenance/v1'
/** A build with a thousand layers and added files stays below. */
export const MAX_PROVENANCE = MiB

const sha256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, 'not a SHA-256'))
const schema = v.object({
  _type: v.literal(IN_TOTO_STATEMENT),
  subject: v.array(
    v.object({
      name: v.string(),
      digest: v.object({ sha256 }),
      annotations: v.object({ length: v.number(), verityRoot: sha256 }),
    }),
  ),
  predicateType: v.literal(SLSA_PROVENANCE),
})

/** What is wrong with a provenance as that of this release, or undefined when its subjects are the release's images. */
export function provenanceFault(bytes: Uint8Array, release: ReleaseStatement): string | undefined {
  let json: unknown
  try {
    json = parseStrictJson(bytes, { maxBytes: MAX_PROVENANCE, maxDepth: 32, integersOnly: false })
  } catch (error) {
    if (!isBistableError(error)) throw error
    return error.message
  }
  const parsed = v.safeParse(schema, json)
  if (!parsed.success) return `${v.getDotPath(parsed.issues[0]) ?? 'the document'}: ${parsed.issues[0].message}`
  const told = parsed.output.subject.map(
    ({ name, annotations: { length, verityRoot } }) => `${name} ${length} ${verityRoot}`,
  )
  const signed = release.images.map(({ name, length, root }) => `${name} ${length} ${root}`)
  return told.join('; ') === signed.join('; ')
    ? undefined
    : `it is about ${told.join('; ') || 'nothing'}; the release has ${signed.join('; ')}`
}
