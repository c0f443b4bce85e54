import { type BlobSpace, findBlob, readBlob, readDocument } from './blobs.ts'
import { checkLayout, layerCompression, type Platform, parseConfig, parseIndex, parseManifest } from './documents.ts'
import { ociErrors } from './errors.ts'
import type { ImageInput, LayerInput } from './input.ts'
import type { Limits } from './limits.ts'
import { platformText, selectManifest, serves } from './select.ts'

/** OCI image layouts, as a folder or in an archive. */

export interface Choice {
  readonly tag: string | undefined
  /** What was asked for; undefined: an only image is taken as it is. */
  readonly want: Platform | undefined
  /** This machine, which decides among several when nothing was asked for. */
  readonly host: Platform
}

export async function openLayout(
  space: BlobSpace,
  choice: Choice,
  limits: Limits,
): Promise<Omit<ImageInput, 'reference' | 'close'>> {
  checkLayout(await readDocument(space, 'oci-layout'), `'${space.name}/oci-layout'`)
  const index = parseIndex(await readDocument(space, 'index.json'), `'${space.name}/index.json'`)
  const chosen = await selectManifest(space, index, choice, limits)
  const what = `the manifest ${chosen.digest}`
  const manifest = parseManifest(await readBlob(space, chosen, 'manifest'), what, chosen.mediaType)
  checkLayerCount(manifest.layers.length, limits)
  const configName = `the config ${manifest.config.digest}`
  const config = parseConfig(await readBlob(space, manifest.config, 'config'), configName)
  checkPlatform(config, choice.want, configName)
  if (config.diffIds.length !== manifest.layers.length)
    throw ociErrors.IMAGE_JSON_INVALID(
      `${what} has ${manifest.layers.length} layers, its config ${config.diffIds.length} diff_ids`,
    )
  const layers: LayerInput[] = []
  for (const [i, layer] of manifest.layers.entries()) {
    const diffId = config.diffIds[i]
    layers.push({
      name: `layer ${i + 1} (${layer.digest})`,
      compression: layerCompression(layer),
      blob: await findBlob(space, layer, 'layer'),
      digest: layer.digest,
      size: layer.size,
      ...(diffId === undefined ? {} : { diffId }),
    })
  }
  return { digest: chosen.digest, config, layers, whiteouts: true }
}

export function checkLayerCount(count: number, limits: Limits): void {
  if (count > limits.layers)
    throw ociErrors.LAYER_LIMIT(`the image has ${count} layers, at most ${limits.layers} are taken`)
}

/** The config has the last word on what an image is for, whatever an index said. */
export function checkPlatform(have: Platform, want: Platform | undefined, what: string): void {
  if (have.os !== 'linux' || (want !== undefined && !serves(have, want)))
    throw ociErrors.IMAGE_PLATFORM_ABSENT(
      `${what} is for ${platformText(have)}, ${platformText(want ?? { ...have, os: 'linux' })} is wanted`,
      { details: { platforms: [platformText(have)] } },
    )
}
