import * as v from 'valibot'
import type { Sha256 } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { parseStrictJson } from '../../base/strict-json.ts'
import type { Compression } from './decompress.ts'
import { ociErrors } from './errors.ts'
import { MAX_DOCUMENT } from './limits.ts'

/** The JSON documents of an image: parsed once, strictly, into shapes that need no further doubt. */

const digest = v.pipe(
  v.string(),
  v.regex(/^sha256:[0-9a-f]{64}$/, 'not a SHA-256 digest'),
  v.transform((text) => text.slice('sha256:'.length) as Sha256),
)
const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const strings = v.record(v.string(), v.string())

const platform = v.object({ os: v.string(), architecture: v.string(), variant: v.optional(v.string()) })
const descriptor = v.object({
  mediaType: v.string(),
  digest,
  size,
  urls: v.nullish(v.array(v.string())),
  annotations: v.nullish(strings),
  platform: v.nullish(platform),
})
const index = v.object({
  schemaVersion: v.literal(2),
  mediaType: v.optional(v.string()),
  manifests: v.array(descriptor),
})
const manifest = v.object({
  schemaVersion: v.literal(2),
  mediaType: v.optional(v.string()),
  config: descriptor,
  layers: v.array(descriptor),
})
const config = v.object({
  architecture: v.pipe(v.string(), v.nonEmpty()),
  os: v.string(),
  variant: v.optional(v.string()),
  created: v.nullish(v.string()),
  config: v.nullish(v.object({ Labels: v.nullish(strings) })),
  rootfs: v.object({ type: v.literal('layers'), diff_ids: v.array(digest) }),
})
const saved = v.array(
  v.object({ Config: v.string(), RepoTags: v.nullish(v.array(v.string())), Layers: v.array(v.string()) }),
)

export type Platform = v.InferOutput<typeof platform>
export type Descriptor = v.InferOutput<typeof descriptor>
export type Index = v.InferOutput<typeof index>
export type Manifest = v.InferOutput<typeof manifest>
export type SavedImages = v.InferOutput<typeof saved>

/** What we take from an image config. */
export interface ImageConfig {
  readonly architecture: string
  readonly os: string
  readonly variant?: string | undefined
  readonly labels: Readonly<Record<string, string>>
  /** Seconds since 1970. */
  readonly created?: number
  readonly diffIds: readonly Sha256[]
}

const INDEXES = ['application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json']
const MANIFESTS = ['application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json']
const CONFIGS = ['application/vnd.oci.image.config.v1+json', 'application/vnd.docker.container.image.v1+json']
const LAYERS: Readonly<Record<string, Compression>> = {
  'application/vnd.oci.image.layer.v1.tar': 'none',
  'application/vnd.oci.image.layer.v1.tar+gzip': 'gzip',
  'application/vnd.oci.image.layer.v1.tar+zstd': 'zstd',
  'application/vnd.docker.image.rootfs.diff.tar': 'none',
  'application/vnd.docker.image.rootfs.diff.tar.gzip': 'gzip',
}
/** Any other text would be read by this machine's time zone. */
const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/i
const EXTERNAL = /nondistributable|foreign/

/** Whether a descriptor names an index or a manifest; anything else an index lists is not an image. */
export function kindOf(from: Descriptor): 'index' | 'manifest' | 'other' {
  if (INDEXES.includes(from.mediaType)) return 'index'
  return MANIFESTS.includes(from.mediaType) ? 'manifest' : 'other'
}

/** How a layer is stored. @throws IMAGE_EXTERNAL_LAYER, IMAGE_MEDIA_TYPE */
export function layerCompression(layer: Descriptor): Compression {
  if (EXTERNAL.test(layer.mediaType))
    throw ociErrors.IMAGE_EXTERNAL_LAYER(`the layer ${layer.digest} is of the external kind ${layer.mediaType}`)
  noUrls(layer)
  const compression = Object.hasOwn(LAYERS, layer.mediaType) ? LAYERS[layer.mediaType] : undefined
  if (compression !== undefined) return compression
  throw ociErrors.IMAGE_MEDIA_TYPE(`the layer ${layer.digest} has the media type '${layer.mediaType}'`)
}

/** Content comes from the image itself, whatever addresses it offers. */
export function noUrls(from: Descriptor): void {
  if (from.urls !== undefined && from.urls !== null && from.urls.length > 0)
    throw ociErrors.IMAGE_EXTERNAL_LAYER(`the blob ${from.digest} is said to be at '${from.urls[0]}'`)
}

/** `mediaType` is what the descriptor said; index.json itself has none. */
export function parseIndex(bytes: Uint8Array, what: string, mediaType?: string): Index {
  const body = parse(bytes, what)
  checkBody(body, what, 'index')
  const found = shape(index, body, what)
  const own = found.mediaType ?? mediaType ?? INDEXES[0]
  if (own !== (mediaType ?? own) || !INDEXES.includes(own ?? ''))
    throw ociErrors.IMAGE_MEDIA_TYPE(`${what} calls itself '${own}', it was announced as '${mediaType ?? INDEXES[0]}'`)
  return found
}

export function parseManifest(bytes: Uint8Array, what: string, mediaType: string): Manifest {
  const body = parse(bytes, what)
  checkBody(body, what, 'manifest')
  const found = shape(manifest, body, what)
  if ((found.mediaType ?? mediaType) !== mediaType)
    throw ociErrors.IMAGE_MEDIA_TYPE(`${what} calls itself '${found.mediaType}', it was announced as '${mediaType}'`)
  if (!CONFIGS.includes(found.config.mediaType))
    throw ociErrors.IMAGE_MEDIA_TYPE(`${what} has a config of media type '${found.config.mediaType}': not an image`)
  noUrls(found.config)
  return found
}

/** One body must not be readable as the other kind (CVE-2021-41190). */
function checkBody(body: unknown, what: string, wanted: 'index' | 'manifest'): void {
  if (typeof body !== 'object' || body === null) return
  const isIndex = 'manifests' in body
  const isManifest = 'layers' in body || 'config' in body || 'fsLayers' in body
  if (wanted === 'index' ? isManifest : isIndex)
    throw ociErrors.IMAGE_MEDIA_TYPE(
      isIndex && isManifest
        ? `${what} can be read both as an index and as a manifest`
        : `${what} was announced as ${wanted}, its body is the other kind`,
    )
}

export function parseConfig(bytes: Uint8Array, what: string): ImageConfig {
  const found = shape(config, parse(bytes, what), what)
  const created = RFC3339.test(found.created ?? '') ? Date.parse(found.created ?? '') : Number.NaN
  return {
    architecture: found.architecture,
    os: found.os,
    ...(found.variant === undefined ? {} : { variant: found.variant }),
    labels: { ...(found.config?.Labels ?? {}) },
    // Go writes an unset time as the year 1.
    ...(Number.isNaN(created) || created < 0 ? {} : { created: Math.floor(created / 1000) }),
    diffIds: found.rootfs.diff_ids,
  }
}

export function parseSaved(bytes: Uint8Array, what: string): SavedImages {
  return shape(saved, parse(bytes, what), what)
}

/** The `oci-layout` file: only version 1 is known. */
export function checkLayout(bytes: Uint8Array, what: string): void {
  const found = shape(v.object({ imageLayoutVersion: v.string() }), parse(bytes, what), what)
  if (found.imageLayoutVersion !== '1.0.0')
    throw ociErrors.IMAGE_UNKNOWN_FORM(`${what} has the layout version '${found.imageLayoutVersion}', 1.0.0 is known`)
}

function parse(bytes: Uint8Array, what: string): unknown {
  try {
    return parseStrictJson(bytes, { maxBytes: MAX_DOCUMENT, maxDepth: 64, integersOnly: false })
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw ociErrors.IMAGE_JSON_INVALID(`${what}: ${cause.message}`, { cause })
  }
}

function shape<T extends v.GenericSchema>(schema: T, body: unknown, what: string): v.InferOutput<T> {
  const result = v.safeParse(schema, body)
  if (result.success) return result.output
  const issue = result.issues[0]
  throw ociErrors.IMAGE_JSON_INVALID(`${what}: ${v.getDotPath(issue) ?? 'the document'}: ${issue.message}`)
}
