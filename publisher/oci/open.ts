import { stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { systemCode, systemReason } from '../../base/errors.ts'
import { archiveSpace, type BlobSpace, folderSpace } from './blobs.ts'
import { openDockerArchive, sniff } from './docker-archive.ts'
import { ociErrors } from './errors.ts'
import { wholeFile } from './file-range.ts'
import type { ImageInput } from './input.ts'
import { type Choice, openLayout } from './layout.ts'
import { DEFAULT_LIMITS, type Limits } from './limits.ts'
import { FETCHED_TAG, fetchImage } from './registry.ts'
import { parsePlatform } from './select.ts'

/** Opens an image by reference: the one way in for every kind of input. */

export interface OpenOptions {
  /** "linux/arm64": what to choose from an index; anything else found is refused. */
  readonly platform?: string
  /** Folder for what is fetched from a registry; the system's one unless told. */
  readonly tempDir?: string
  /** False: a registry by plain HTTP or with an unknown certificate. True unless told. */
  readonly tlsVerify?: boolean
  readonly limits?: Limits
  readonly signal?: AbortSignal
  /** Where to look for skopeo; PATH unless told. */
  readonly searchPath?: string
}

const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386' }
const KINDS = ['oci', 'oci-archive', 'docker-archive', 'rootfs'] as const

/**
 * Finds the image and reads and checks its documents; layers are read later, by `mergeImage`.
 *
 * `ref`: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, `rootfs:FILE`, `docker://NAME`, or
 * a bare path to a layout folder or an archive. Close the result when it was merged.
 * @throws IMAGE_… codes of `errors.ts`
 */
export async function openImage(ref: string, options: OpenOptions = {}): Promise<ImageInput> {
  const want = options.platform === undefined ? undefined : parsePlatform(options.platform)
  const host = { os: 'linux', architecture: ARCHITECTURES[process.arch] ?? process.arch }
  const limits = options.limits ?? DEFAULT_LIMITS
  if (ref.startsWith('docker://')) {
    const fetched = await fetchImage(ref, {
      platform: want ?? host,
      tempDir: options.tempDir ?? tmpdir(),
      tlsVerify: options.tlsVerify ?? true,
      signal: options.signal,
      path: options.searchPath,
    })
    try {
      const image = await openLayout(folderSpace(fetched.dir), { tag: FETCHED_TAG, want, host }, limits)
      return { ...image, reference: ref, close: fetched.remove }
    } catch (error) {
      await fetched.remove()
      throw error
    }
  }
  const image = await openLocal(ref, want, host, limits)
  return { ...image, reference: ref, close: async () => {} }
}

async function openLocal(
  ref: string,
  want: Choice['want'],
  host: Choice['host'],
  limits: Limits,
): Promise<Omit<ImageInput, 'reference' | 'close'>> {
  const kind = KINDS.find((k) => ref.startsWith(`${k}:`))
  if (kind === 'rootfs') return await openRootfs(ref.slice('rootfs:'.length), want ?? host)
  const { path, tag } = await splitTag(kind === undefined ? ref : ref.slice(kind.length + 1))
  const choice = { tag, want, host }
  const found = await kindOfPath(path)
  if (found === 'missing') throw ociErrors.IMAGE_NOT_FOUND(`there is no '${path}'`)
  const isFolder = found === 'folder'
  if (isFolder !== (kind === 'oci') && kind !== undefined)
    throw ociErrors.IMAGE_UNKNOWN_FORM(`'${path}' is a ${isFolder ? 'folder' : 'file'}, which ${kind}: does not name`)
  const space = isFolder ? folderSpace(path) : await archiveSpace(path)
  if (kind !== 'docker-archive' && (await has(space, 'oci-layout'))) return await openLayout(space, choice, limits)
  if (kind !== 'oci' && kind !== 'oci-archive' && !isFolder && (await has(space, 'manifest.json')))
    return await openDockerArchive(space, choice, limits)
  const looked =
    kind === 'docker-archive'
      ? 'manifest.json'
      : isFolder || kind !== undefined
        ? 'oci-layout'
        : 'oci-layout or manifest.json'
  throw ociErrors.IMAGE_UNKNOWN_FORM(
    (await has(space, 'repositories'))
      ? `'${path}' was saved by a Docker older than 1.10, without manifest.json`
      : `'${path}' holds no ${looked}`,
  )
}

async function has(space: BlobSpace, path: string): Promise<boolean> {
  return (await space.find(path)) !== undefined
}

/** A plain tar of a root file system: one layer, no digests to hold it to. */
async function openRootfs(path: string, platform: Choice['host']): Promise<Omit<ImageInput, 'reference' | 'close'>> {
  const blob = await wholeFile(path)
  return {
    config: { ...platform, labels: {}, diffIds: [] },
    layers: [{ name: `'${path}'`, blob, compression: await sniff(blob) }],
    whiteouts: false,
  }
}

/** "PATH:TAG": a path that exists as written has no tag; else it ends at the first colon. */
async function splitTag(text: string): Promise<{ path: string; tag: string | undefined }> {
  const colon = text.indexOf(':')
  if (colon < 0 || (await kindOfPath(text)) !== 'missing') return { path: text, tag: undefined }
  if (colon === 0 || colon === text.length - 1)
    throw ociErrors.IMAGE_REFERENCE_INVALID(`'${text}' is not of the form PATH:TAG`)
  return { path: text.slice(0, colon), tag: text.slice(colon + 1) }
}

async function kindOfPath(path: string): Promise<'folder' | 'file' | 'missing'> {
  try {
    return (await stat(path)).isDirectory() ? 'folder' : 'file'
  } catch (cause) {
    if (systemCode(cause) === 'ENOENT' || systemCode(cause) === 'ENOTDIR') return 'missing'
    throw ociErrors.IMAGE_NOT_FOUND(`'${path}' cannot be opened: ${systemReason(cause)}`, { cause })
  }
}
