import type { Sha256 } from '../../base/bytes.ts'
import { encodeIndex } from '../../bundle/chunks.ts'
import { sha256 } from '../../bundle/digest.ts'
import {
  attachmentName,
  dataName,
  indexName,
  MARKER,
  MARKER_NAME,
  RELEASE_NAME,
  rootName,
} from '../../bundle/layout.ts'
import { TAR_END, tarHeader, tarPadding } from '../../bundle/tar.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import { type Chunk, type ChunkIndex, IMAGE_NAMES, type ImageName, RELEASE_PAYLOAD_TYPE } from '../../bundle/types.ts'
import { compress } from '../../bundle/zstd.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { signStatement } from '../../keys/statement.ts'
import { signer } from '../keys/helpers.ts'

/** Bundles by an attacker who knows the format: framed as the real writer frames them, with none of its checks. */

export interface Part {
  readonly name: string
  readonly content: Uint8Array
}

export function frame(parts: readonly Part[]): Buffer {
  return Buffer.concat([
    ...parts.flatMap(({ name, content }) => [
      tarHeader(name, content.length),
      content,
      Buffer.alloc(tarPadding(content.length)),
    ]),
    Buffer.alloc(TAR_END),
  ])
}

export interface Image {
  readonly index: ChunkIndex
  readonly root: Sha256
  /** The stored chunks; empty for an image that is only described. */
  readonly data: Uint8Array
}

/** An image in memory, raw, in chunks of 8 KiB. */
export function imageOf(bytes: Uint8Array): Image {
  const tree = createTreeHasher()
  tree.update(bytes)
  const chunks: Chunk[] = []
  for (let offset = 0; offset < bytes.length; offset += 8192) {
    const content = bytes.subarray(offset, offset + 8192)
    const digest = sha256(content)
    const { length } = content
    chunks.push({
      digest,
      offset,
      length,
      encoding: 'raw',
      storedOffset: offset,
      storedLength: length,
      storedDigest: digest,
    })
  }
  return { index: { imageLength: bytes.length, chunks }, root: tree.finish().root, data: bytes }
}

/** A release statement for images, as JSON; `more` replaces fields. */
export function statementFor(images: Readonly<Record<ImageName, Image>>, more: Record<string, unknown> = {}) {
  const inventory = Buffer.from('{"path":"/","type":"dir","mode":493,"uid":0,"gid":0}\n')
  const stored = compress(inventory, 3)
  const statement = {
    type: 'release',
    product: 'demo',
    hardware: ['qemu-x86_64'],
    number: { epoch: 0, counter: 7 },
    version: '2.0.0',
    securityFloor: { epoch: 0, counter: 3 },
    rootVersion: 1,
    issued: '2026-11-21T00:00:00Z',
    images: IMAGE_NAMES.map((name) => {
      const index = encodeIndex(images[name].index)
      const last = images[name].index.chunks.at(-1)
      return {
        name,
        length: images[name].index.imageLength,
        root: images[name].root,
        index: { length: index.length, sha256: sha256(index) },
        data: { length: (last?.storedOffset ?? 0) + (last?.storedLength ?? 0) },
      }
    }),
    attachments: [{ name: 'inventory', length: stored.length, sha256: sha256(stored), unpacked: inventory.length }],
    ...more,
  }
  return { statement, inventory: stored }
}

/** Everything in front of the data, signed by release key 11 (or others). */
export async function headParts(
  images: Readonly<Record<ImageName, Image>>,
  roots: readonly Uint8Array[],
  options: { readonly more?: Record<string, unknown>; readonly by?: readonly number[] } = {},
): Promise<Part[]> {
  const { statement, inventory } = statementFor(images, options.more)
  const payload = Buffer.from(JSON.stringify(statement))
  const envelope = await signStatement(RELEASE_PAYLOAD_TYPE, payload, (options.by ?? [11]).map(signer))
  return [
    { name: MARKER_NAME, content: Buffer.from(MARKER) },
    ...roots.map((content, i) => ({ name: rootName(i + 1), content })),
    { name: RELEASE_NAME, content: encodeEnvelope(envelope) },
    ...IMAGE_NAMES.map((name) => ({ name: indexName(name), content: encodeIndex(images[name].index) })),
    { name: attachmentName('inventory'), content: inventory },
  ]
}

export async function memoryBundle(
  images: Readonly<Record<ImageName, Image>>,
  roots: readonly Uint8Array[],
  options: Parameters<typeof headParts>[2] = {},
): Promise<Buffer> {
  const data = IMAGE_NAMES.map((name) => ({ name: dataName(name), content: images[name].data }))
  return frame([...(await headParts(images, roots, options)), ...data])
}
