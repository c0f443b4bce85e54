import { existsSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sha256 } from '../base/bytes.ts'
import { systemReason } from '../base/errors.ts'
import { readExactly } from '../base/source.ts'
import { MAX_SIGNED_BYTES } from '../keys/dsse.ts'
import { MAX_INDEX_BYTES } from './chunks.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { fileSource } from './file-source.ts'
import { packImage } from './pack.ts'
import {
  ATTACHMENT_LEVEL,
  encodeRelease,
  MAX_ATTACHMENT_STORED,
  MAX_ATTACHMENT_UNPACKED,
  parseRelease,
} from './release.ts'
import {
  ATTACHMENT_NAMES,
  type AttachmentEntry,
  type AttachmentName,
  IMAGE_NAMES,
  type ImageEntry,
  type ImageName,
  type ReleaseStatement,
} from './types.ts'
import type { ReleaseParts } from './writer.ts'
import { compress } from './zstd.ts'

/**
 * The build folder: the unsigned product of `build`, and all that `publish` needs besides signatures.
 *
 *   statement.json           exact payload bytes, what is signed; written last, so a folder without it is unfinished
 *   boot.img, rootfs.img     the images
 *   boot.idx, rootfs.idx     their chunk indexes
 *   boot.data                stored chunks, only when some are compressed; else they are the image itself
 *   inventory.zst, …         attachments as stored
 */

const STATEMENT = 'statement.json'

/** Where `build` puts an image before `finishBuild`. */
export function buildImagePath(folder: string, image: ImageName): string {
  return join(folder, `${image}.img`)
}

export interface BuildFacts {
  /** The statement but for what follows from the files. */
  readonly release: Omit<ReleaseStatement, 'type' | 'images' | 'attachments'>
  /** Block boundaries of an image, for cuts that survive small changes. */
  readonly boundaries?: Readonly<Partial<Record<ImageName, Iterable<number>>>>
  /** Attachments, not yet compressed. */
  readonly attachments: Readonly<Partial<Record<AttachmentName, Uint8Array>>>
}

export interface Build {
  /** Exact bytes to sign, under `RELEASE_PAYLOAD_TYPE`. */
  readonly payload: Uint8Array
  readonly statement: ReleaseStatement
  /** The release's digest: SHA-256 of `payload`. */
  readonly digest: Sha256
  /** What `writeBundle` takes besides envelopes; data by path, not in memory. */
  readonly parts: ReleaseParts
}

/**
 * Completes a folder that holds `boot.img` and `rootfs.img`: indexes, attachments, statement. The root file system
 * is compressed inside already, so its chunks stay raw; the boot image is compressed per chunk where that helps.
 * @throws IMAGE_LENGTH, IMAGE_BOUNDARIES, RELEASE_INVALID, BUNDLE_TOO_LARGE, BUNDLE_WRITE, SOURCE_*
 */
export async function finishBuild(
  folder: string,
  facts: BuildFacts,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Build> {
  await rm(join(folder, STATEMENT), { force: true })
  const images: ImageEntry[] = []
  for (const name of IMAGE_NAMES) {
    const boundaries = facts.boundaries?.[name]
    const packed = await packImage(buildImagePath(folder, name), {
      compress: name === 'boot',
      dataPath: join(folder, `${name}.data`),
      ...(boundaries === undefined ? {} : { boundaries }),
      ...options,
    })
    await write(join(folder, `${name}.idx`), packed.indexBytes)
    images.push({
      name,
      length: packed.length,
      root: packed.root,
      index: { length: packed.indexBytes.length, sha256: sha256(packed.indexBytes) },
      data: { length: packed.index.chunks.reduce((sum, chunk) => sum + chunk.storedLength, 0) },
    })
  }
  const attachments: AttachmentEntry[] = []
  for (const name of ATTACHMENT_NAMES) {
    const unpacked = facts.attachments[name]
    if (unpacked === undefined) continue
    if (unpacked.length > MAX_ATTACHMENT_UNPACKED)
      throw bundleErrors.BUNDLE_TOO_LARGE(
        `the ${name} has ${unpacked.length} bytes, at most ${MAX_ATTACHMENT_UNPACKED}`,
      )
    const stored = compress(unpacked, ATTACHMENT_LEVEL)
    await write(join(folder, `${name}.zst`), stored)
    attachments.push({ name, length: stored.length, sha256: sha256(stored), unpacked: unpacked.length })
  }
  const payload = encodeRelease({ type: 'release', ...facts.release, images, attachments })
  await write(join(folder, STATEMENT), payload)
  return openBuild(folder)
}

/**
 * Reads a finished build folder. That its files are those of the statement is checked by `writeBundle`.
 * @throws BUILD_FOLDER, RELEASE_INVALID
 */
export async function openBuild(folder: string): Promise<Build> {
  const payload = await readBounded(folder, STATEMENT, MAX_SIGNED_BYTES)
  const statement = parseRelease(payload)
  const images: ReleaseParts['images'][number][] = []
  for (const { name } of statement.images) {
    const packed = join(folder, `${name}.data`)
    images.push({
      name,
      indexBytes: await readBounded(folder, `${name}.idx`, MAX_INDEX_BYTES),
      data: existsSync(packed) ? packed : buildImagePath(folder, name),
    })
  }
  const attachments: ReleaseParts['attachments'][number][] = []
  for (const { name } of statement.attachments)
    attachments.push({ name, stored: await readBounded(folder, `${name}.zst`, MAX_ATTACHMENT_STORED) })
  return { payload, statement, digest: sha256(payload), parts: { images, attachments } }
}

async function readBounded(folder: string, name: string, limit: number): Promise<Uint8Array> {
  const path = join(folder, name)
  if (!existsSync(path)) throw bundleErrors.BUILD_FOLDER(`${folder} has no ${name}: it is not a finished build`)
  const source = await fileSource(path)
  try {
    if (source.size > limit)
      throw bundleErrors.BUILD_FOLDER(`${path} has ${source.size} bytes, at most ${limit} belong there`)
    return await readExactly(source, 0, source.size)
  } finally {
    await source.close()
  }
}

async function write(path: string, bytes: Uint8Array): Promise<void> {
  try {
    await writeFile(path, bytes)
  } catch (cause) {
    throw bundleErrors.BUNDLE_WRITE(`cannot write ${path}: ${systemReason(cause)}`, { cause })
  }
}
