import { type BlobSpace, readBlob } from './blobs.ts'
import {
  type Descriptor,
  type Index,
  kindOf,
  noUrls,
  type Platform,
  parseConfig,
  parseIndex,
  parseManifest,
} from './documents.ts'
import { ociErrors } from './errors.ts'
import type { Limits } from './limits.ts'

/** Choosing one image out of an index. Never by order: what is not unique is refused with a list. */

const REF_NAME = 'org.opencontainers.image.ref.name'
/** Indexes inside indexes; real ones nest once. */
const MAX_NESTING = 4

interface Candidate {
  readonly manifest: Descriptor
  readonly platform: Platform
  readonly tag: string | undefined
}

/** "linux/arm64", "linux/arm/v7". @throws IMAGE_REFERENCE_INVALID */
export function parsePlatform(text: string): Platform {
  const match = /^([a-z0-9]+)\/([a-z0-9_]+)(?:\/([a-z0-9.]+))?$/.exec(text)
  const [, os, architecture, variant] = match ?? []
  if (os === undefined || architecture === undefined)
    throw ociErrors.IMAGE_REFERENCE_INVALID(`the platform '${text}' is not of the form linux/ARCHITECTURE[/VARIANT]`)
  return { os, architecture, ...(variant === undefined ? {} : { variant }) }
}

export function platformText(platform: Platform): string {
  const { os, architecture, variant } = platform
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`
}

/** Whether an image for `have` serves one who wants `want`; a wish without a variant takes any. */
export function serves(have: Platform, want: Platform): boolean {
  if (have.os !== want.os || have.architecture !== want.architecture) return false
  return want.variant === undefined || variantOf(have) === variantOf(want)
}

/** arm64 without a variant means v8. */
function variantOf(platform: Platform): string {
  return platform.variant ?? (platform.architecture === 'arm64' ? 'v8' : '')
}

/**
 * Finds the one manifest that `tag` and `want` name.
 *
 * Without `want`, an only image is taken whatever its platform; of several, the one for `host`.
 * @throws IMAGE_AMBIGUOUS, IMAGE_PLATFORM_ABSENT, IMAGE_BLOB_MISSING, and what a malformed document earns
 */
export async function selectManifest(
  space: BlobSpace,
  index: Index,
  choice: { readonly tag: string | undefined; readonly want: Platform | undefined; readonly host: Platform },
  limits: Limits,
): Promise<Descriptor> {
  const all = await flatten(space, index, limits)
  const tagged = choice.tag === undefined ? all : all.filter((c) => c.tag === choice.tag)
  if (tagged.length === 0)
    throw ociErrors.IMAGE_BLOB_MISSING(
      choice.tag === undefined
        ? `'${space.name}' lists no image`
        : `'${space.name}' has no image tagged '${choice.tag}'; there is ${list(all)}`,
    )
  const wanted = choice.want ?? (distinct(tagged).length === 1 ? undefined : choice.host)
  const fitting = wanted === undefined ? tagged : tagged.filter((c) => serves(c.platform, wanted))
  const found = distinct(fitting)
  const [only] = found
  if (only === undefined)
    throw ociErrors.IMAGE_PLATFORM_ABSENT(
      `'${space.name}' has nothing for ${platformText(wanted ?? choice.host)}; there is ${list(tagged)}`,
      { details: { platforms: tagged.map((c) => platformText(c.platform)) } },
    )
  if (found.length > 1) throw ociErrors.IMAGE_AMBIGUOUS(`'${space.name}' has ${list(found)}`)
  return only.manifest
}

/** The same manifest may be listed under several tags. */
function distinct(candidates: readonly Candidate[]): Candidate[] {
  return [...new Map(candidates.map((c) => [c.manifest.digest, c])).values()]
}

function list(candidates: readonly Candidate[]): string {
  const shown = candidates.slice(0, 20).map((c) => `${c.tag ?? 'untagged'} ${platformText(c.platform)}`)
  return [...shown, ...(candidates.length > 20 ? ['…'] : [])].join(', ') || 'nothing'
}

async function flatten(space: BlobSpace, index: Index, limits: Limits): Promise<Candidate[]> {
  const out: Candidate[] = []
  const seen = new Set<string>()
  let documents = 0
  const walk = async (list: Index, tag: string | undefined, nesting: number): Promise<void> => {
    for (const entry of list.manifests) {
      const kind = kindOf(entry)
      if (kind === 'other') continue
      if (++documents > limits.documents)
        throw ociErrors.LAYER_LIMIT(`'${space.name}' lists more than ${limits.documents} manifests`)
      noUrls(entry)
      const name = tag ?? entry.annotations?.[REF_NAME]
      if (kind === 'manifest') out.push({ manifest: entry, platform: await platformOf(space, entry), tag: name })
      else {
        const key = `${entry.digest} ${name ?? ''}`
        if (nesting >= MAX_NESTING || seen.has(key))
          throw ociErrors.LAYER_LIMIT(`'${space.name}' nests its indexes deeper than ${MAX_NESTING}, or in a circle`)
        seen.add(key)
        const bytes = await readBlob(space, entry, 'index')
        await walk(parseIndex(bytes, `the index ${entry.digest}`, entry.mediaType), name, nesting + 1)
      }
    }
  }
  await walk(index, undefined, 0)
  return out
}

/** The index may say nothing of the platform; then the config does. */
async function platformOf(space: BlobSpace, entry: Descriptor): Promise<Platform> {
  if (entry.platform !== undefined && entry.platform !== null) return entry.platform
  const what = `the manifest ${entry.digest}`
  const manifest = parseManifest(await readBlob(space, entry, 'manifest'), what, entry.mediaType)
  const config = parseConfig(await readBlob(space, manifest.config, 'config'), `the config ${manifest.config.digest}`)
  return {
    os: config.os,
    architecture: config.architecture,
    ...(config.variant === undefined ? {} : { variant: config.variant }),
  }
}
