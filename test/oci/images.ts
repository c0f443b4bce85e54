import { hash } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { onTestFinished } from 'vitest'
import { decompress } from 'zstd-napi'
import { type MergeOptions, mergeImage, type StoredTree } from '../../publisher/oci/merge.ts'
import { type OpenOptions, openImage } from '../../publisher/oci/open.ts'
import type { MergedTree } from '../../publisher/tree.ts'
import { countInAttack } from '../attacks/refused.ts'

/** Makes OCI layouts, honest and not, and merges them. */

export function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'bistable-oci-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

export interface LayerSpec {
  readonly bytes: Uint8Array
  readonly mediaType?: string
  readonly diffId?: string
  readonly descriptor?: Readonly<Record<string, unknown>>
}

export interface ImageSpec {
  readonly layers: readonly LayerSpec[]
  readonly architecture?: string
  readonly variant?: string
  readonly os?: string
  readonly created?: string
  readonly labels?: Readonly<Record<string, string>> | null
  /** Merged over the manifest, the config and the manifest's descriptor. */
  readonly manifest?: Readonly<Record<string, unknown>>
  readonly config?: Readonly<Record<string, unknown>>
  readonly descriptor?: Readonly<Record<string, unknown>>
}

const OCI = 'application/vnd.oci.image'
export const TAR = `${OCI}.layer.v1.tar`

/** A layout folder in the making. */
export class LayoutMaker {
  readonly dir: string
  readonly manifests: unknown[] = []

  constructor(dir = join(scratch(), 'layout')) {
    this.dir = dir
    mkdirSync(join(dir, 'blobs', 'sha256'), { recursive: true })
    writeFileSync(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  }

  blob(bytes: Uint8Array): { digest: string; size: number } {
    const digest = hash('sha256', bytes, 'hex')
    writeFileSync(join(this.dir, 'blobs', 'sha256', digest), bytes)
    return { digest: `sha256:${digest}`, size: bytes.length }
  }

  json(value: unknown): { digest: string; size: number } {
    return this.blob(Buffer.from(JSON.stringify(value)))
  }

  /** Adds an image's blobs; returns the descriptor of its manifest. */
  image(spec: ImageSpec): Record<string, unknown> {
    const config = this.json({
      architecture: spec.architecture ?? 'amd64',
      os: spec.os ?? 'linux',
      ...(spec.variant === undefined ? {} : { variant: spec.variant }),
      ...(spec.created === undefined ? {} : { created: spec.created }),
      config: { Labels: spec.labels ?? null },
      rootfs: { type: 'layers', diff_ids: spec.layers.map((l) => l.diffId ?? `sha256:${diffId(l.bytes)}`) },
      ...spec.config,
    })
    const manifest = this.json({
      schemaVersion: 2,
      mediaType: `${OCI}.manifest.v1+json`,
      config: { mediaType: `${OCI}.config.v1+json`, ...config },
      layers: spec.layers.map((l) => ({ mediaType: l.mediaType ?? TAR, ...this.blob(l.bytes), ...l.descriptor })),
      ...spec.manifest,
    })
    return { mediaType: `${OCI}.manifest.v1+json`, ...manifest, ...spec.descriptor }
  }

  index(manifests: readonly unknown[]): Record<string, unknown> {
    const mediaType = `${OCI}.index.v1+json`
    return { mediaType, ...this.json({ schemaVersion: 2, mediaType, manifests }) }
  }

  /** Writes index.json; returns the reference. */
  write(manifests: readonly unknown[], more: Readonly<Record<string, unknown>> = {}): string {
    writeFileSync(join(this.dir, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests, ...more }))
    return `oci:${this.dir}`
  }
}

/** SHA-256 of what a layer unpacks to, when it does. */
function diffId(bytes: Uint8Array): string {
  let plain = bytes
  try {
    if (bytes[0] === 0x1f) plain = gunzipSync(bytes)
    else if (bytes[0] === 0x28) plain = decompress(bytes)
  } catch {
    // A damaged layer is refused before its diff_id is looked at.
  }
  return hash('sha256', plain, 'hex')
}

/** One image of plain tar layers in a fresh layout. */
export function imageOf(...layers: readonly Uint8Array[]): string {
  const maker = new LayoutMaker()
  return maker.write([maker.image({ layers: layers.map((bytes) => ({ bytes })) })])
}

export type Options = OpenOptions & MergeOptions

export async function merged(ref: string, options: Options = {}): Promise<StoredTree> {
  const input = await openImage(ref, options)
  const tree = await mergeImage(input, scratch(), options)
  onTestFinished(() => tree.close())
  await input.close()
  return tree
}

/** The code, and the sentence, that an image is refused with; "accepted" if it is not. */
export async function refusal(ref: string, options: Options = {}): Promise<string> {
  try {
    await merged(ref, options)
    return 'accepted'
  } catch (error) {
    if (!(error instanceof Error && 'code' in error)) throw error
    countInAttack()
    return `${String(error.code)}: ${error.message}`
  }
}

/** The code that one plain tar layer is refused with. */
export async function layerRefusal(layer: Uint8Array, options: Options = {}): Promise<string> {
  return (await refusal(imageOf(layer), options)).split(':')[0] ?? ''
}

/** One line per entry, for comparing trees: "dir 755 etc", "file 644 etc/motd hello". */
export async function listing(tree: MergedTree): Promise<string[]> {
  const lines: string[] = []
  for (const { path, node, link } of tree.entries()) {
    const more =
      node.type === 'file'
        ? ` ${Buffer.from(await tree.readSmall(node, 1 << 20)).toString()}`
        : node.type === 'symlink'
          ? ` -> ${node.target}`
          : ''
    lines.push(`${node.type} ${node.mode.toString(8)} ${path || '.'}${more}${link === undefined ? '' : ` #${link}`}`)
  }
  return lines
}
