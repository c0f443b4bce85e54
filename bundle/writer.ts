import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import type { Sha256 } from '../base/bytes.ts'
import { nodeFiles, requireReplaceable } from '../base/durable.ts'
import { systemReason } from '../base/errors.ts'
import { authenticate, authenticateAssignment, checkAssigned } from './authentic.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { fileSource } from './file-source.ts'
import {
  ASSIGNMENT_NAME,
  attachmentName,
  dataName,
  indexName,
  MARKER,
  MARKER_NAME,
  RELEASE_NAME,
  rootName,
} from './layout.ts'
import { readIndex } from './reader.ts'
import { checkStored, splitChunks } from './stored.ts'
import { TAR_END, tarHeader, tarPadding } from './tar.ts'
import type { AttachmentName, ImageName, ReleaseStatement } from './types.ts'

/** The stored parts of a release: all of a bundle but the envelopes. */
export interface ReleaseParts {
  readonly images: readonly {
    readonly name: ImageName
    readonly indexBytes: Uint8Array
    /** The stored chunks back to back: a stream, or the path of a file. */
    readonly data: string | AsyncIterable<Uint8Array>
  }[]
  /** Stored bytes: zstd frames. */
  readonly attachments: readonly { readonly name: AttachmentName; readonly stored: Uint8Array }[]
}

export interface BundleParts extends ReleaseParts {
  /** Root envelopes, consecutive versions, oldest first. */
  readonly roots: readonly Uint8Array[]
  /** The signed release envelope. */
  readonly envelope: Uint8Array
  readonly assignment?: Uint8Array
}

/**
 * Writes a bundle: same parts, same bytes. Signatures are verified and every byte written is checked against the
 * signed statement; the file appears under its name only when it is whole and flushed.
 * @returns its size, and the digest of the release
 * @throws BUNDLE_PARTS, BUNDLE_DIGEST, BUNDLE_INDEX_INVALID, BUNDLE_WRITE, the errors of `authenticate`, SOURCE_*, FILE_*
 */
export async function writeBundle(
  parts: BundleParts,
  out: string,
  options: { readonly signal?: AbortSignal } = {},
): Promise<{ readonly size: number; readonly digest: Sha256; readonly statement: ReleaseStatement }> {
  const authentic = authenticate(parts.roots, parts.envelope, undefined)
  const { trusted, statement, digest } = authentic
  if (parts.assignment !== undefined) checkAssigned(authenticateAssignment(parts.assignment, trusted), authentic)
  checkParts(statement, parts)
  await requireReplaceable(out)
  const first = trusted.current.version - parts.roots.length + 1
  const beside = join(dirname(out), `.${basename(out)}.new`)
  let file: FileHandle | undefined
  try {
    // A link that somebody put there, in a folder of many users, must not lead the writing elsewhere.
    await rm(beside, { force: true })
    file = await open(beside, 'wx')
    const sink = new Sink(file)
    await sink.member(MARKER_NAME, Buffer.from(MARKER))
    for (const [i, root] of parts.roots.entries()) await sink.member(rootName(first + i), root)
    await sink.member(RELEASE_NAME, parts.envelope)
    if (parts.assignment !== undefined) await sink.member(ASSIGNMENT_NAME, parts.assignment)
    for (const { name, indexBytes } of parts.images) await sink.member(indexName(name), indexBytes)
    for (const { name, stored } of parts.attachments) await sink.member(attachmentName(name), stored)
    for (const [i, part] of parts.images.entries()) {
      const image = statement.images[i]
      if (image === undefined) throw new RangeError('images were checked')
      const { chunks } = readIndex(part.indexBytes, image)
      await sink.write(tarHeader(dataName(part.name), image.data.length))
      for await (const [chunk, stored] of splitChunks(dataStream(part.data), chunks)) {
        options.signal?.throwIfAborted()
        checkStored(chunk, stored)
        await sink.write(stored)
      }
      await sink.write(new Uint8Array(tarPadding(image.data.length)))
    }
    await sink.write(new Uint8Array(TAR_END))
    await file.sync()
    await file.close()
    file = undefined
    await rename(beside, out)
    await nodeFiles.syncDir(dirname(out))
    return { size: sink.size, digest, statement }
  } catch (cause) {
    await file?.close()
    await rm(beside, { force: true })
    if (!(cause instanceof Error && 'syscall' in cause)) throw cause
    throw bundleErrors.BUNDLE_WRITE(`cannot write ${out}: ${systemReason(cause)}`, { cause })
  }
}

/** The parts must be those of the statement, in its order, byte for byte. @throws BUNDLE_PARTS, BUNDLE_INDEX_INVALID */
export function checkParts(statement: ReleaseStatement, parts: ReleaseParts): void {
  const wanted = [...statement.images, ...statement.attachments].map(({ name }) => name).join(', ')
  const found = [...parts.images, ...parts.attachments].map(({ name }) => name).join(', ')
  if (wanted !== found) throw bundleErrors.BUNDLE_PARTS(`the parts are ${found}; the statement lists ${wanted}`)
  for (const [i, { name, indexBytes }] of parts.images.entries()) {
    const entry = statement.images[i]
    if (indexBytes.length !== entry?.index.length || sha256(indexBytes) !== entry.index.sha256)
      throw bundleErrors.BUNDLE_PARTS(`the chunk index of ${name} is not the one that was signed`)
    readIndex(indexBytes, entry)
  }
  for (const [i, { name, stored }] of parts.attachments.entries()) {
    const entry = statement.attachments[i]
    if (stored.length !== entry?.length || sha256(stored) !== entry.sha256)
      throw bundleErrors.BUNDLE_PARTS(`the attachment ${name} is not the one that was signed`)
  }
}

async function* dataStream(data: string | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  if (typeof data !== 'string') {
    yield* data
    return
  }
  const source = await fileSource(data)
  try {
    yield* source.read(0, source.size)
  } finally {
    await source.close()
  }
}

class Sink {
  size = 0
  readonly #file: FileHandle

  constructor(file: FileHandle) {
    this.#file = file
  }

  async member(name: string, content: Uint8Array): Promise<void> {
    await this.write(tarHeader(name, content.length))
    await this.write(content)
    await this.write(new Uint8Array(tarPadding(content.length)))
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#file.writeFile(bytes)
    this.size += bytes.length
  }
}
