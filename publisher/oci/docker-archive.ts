import type { Sha256 } from '../../base/bytes.ts'
import { type BlobSpace, readDocument } from './blobs.ts'
import { detectCompression } from './decompress.ts'
import { parseConfig, parseSaved, type SavedImages } from './documents.ts'
import { ociErrors } from './errors.ts'
import { type FileRange, readRange, readWhole } from './file-range.ts'
import type { ImageInput, LayerInput } from './input.ts'
import { type Choice, checkLayerCount, checkPlatform } from './layout.ts'
import { type Limits, MAX_DOCUMENT } from './limits.ts'

/** What `docker save` writes: manifest.json names a config and layers by path. Digests: the config's name, diff_ids. */

export async function openDockerArchive(
  space: BlobSpace,
  choice: Choice,
  limits: Limits,
): Promise<Omit<ImageInput, 'reference' | 'close'>> {
  const image = pick(
    parseSaved(await readDocument(space, 'manifest.json'), `'${space.name}/manifest.json'`),
    space,
    choice,
  )
  checkLayerCount(image.Layers.length, limits)
  const { bytes, digest } = await readConfig(space, image.Config)
  const config = parseConfig(bytes, `the config '${image.Config}'`)
  checkPlatform(config, choice.want, `the config '${image.Config}'`)
  if (config.diffIds.length !== image.Layers.length)
    throw ociErrors.IMAGE_JSON_INVALID(
      `'${space.name}' has ${image.Layers.length} layers, its config ${config.diffIds.length} diff_ids`,
    )
  const layers: LayerInput[] = []
  for (const [i, path] of image.Layers.entries()) {
    const blob = await member(space, path)
    const diffId = config.diffIds[i]
    layers.push({
      name: `layer ${i + 1} ('${path}')`,
      blob,
      // No media type says it; the diff_id proves whatever comes out.
      compression: await sniff(blob),
      ...(diffId === undefined ? {} : { diffId }),
    })
  }
  return { digest, config, layers, whiteouts: true }
}

function pick(images: SavedImages, space: BlobSpace, choice: Choice): SavedImages[number] {
  const tag = choice.tag
  const fitting = tag === undefined ? images : images.filter((i) => i.RepoTags?.some((t) => t === tag) === true)
  const [only] = fitting
  const there =
    images
      .flatMap((i) => i.RepoTags ?? ['untagged'])
      .slice(0, 20)
      .join(', ') || 'nothing'
  if (only === undefined)
    throw ociErrors.IMAGE_BLOB_MISSING(
      `'${space.name}' has no image${tag === undefined ? '' : ` '${tag}'`}; there is ${there}`,
    )
  if (fitting.length > 1) throw ociErrors.IMAGE_AMBIGUOUS(`'${space.name}' has ${there}`)
  return only
}

/** The config is named by its digest, "HEX.json" or "blobs/sha256/HEX": without that nothing would hold the diff_ids. */
async function readConfig(space: BlobSpace, path: string): Promise<{ bytes: Uint8Array; digest: Sha256 }> {
  const digest = /^(?:blobs\/sha256\/([0-9a-f]{64})|([0-9a-f]{64})\.json)$/.exec(path)
  const named = (digest?.[1] ?? digest?.[2]) as Sha256 | undefined
  if (named === undefined)
    throw ociErrors.IMAGE_JSON_INVALID(`'${space.name}' names its config '${path}', a SHA-256 is wanted there`)
  const bytes = await readWhole(await member(space, path), MAX_DOCUMENT, { digest: named })
  if (bytes === undefined)
    throw ociErrors.IMAGE_JSON_INVALID(`the config '${path}' has more than ${MAX_DOCUMENT} bytes`)
  return { bytes, digest: named }
}

async function member(space: BlobSpace, path: string): Promise<FileRange> {
  const range = await space.find(path)
  if (range === undefined) throw ociErrors.IMAGE_BLOB_MISSING(`'${space.name}' holds no '${path}'`)
  return range
}

/** Compression by the first bytes. */
export async function sniff(blob: FileRange): Promise<ReturnType<typeof detectCompression>> {
  for await (const piece of readRange({ ...blob, size: Math.min(blob.size, 4) })) return detectCompression(piece)
  return 'none'
}
