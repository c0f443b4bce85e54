import { MiB } from '../base/bytes.ts'
import { type ByteSource, readExactly } from '../base/source.ts'
import type { TrustedRoots } from '../keys/types.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { attachmentName, dataName, type Member } from './layout.ts'
import { checkMember, checkZero } from './members.ts'
import { openBundle, type ReadOptions } from './reader.ts'
import { checkRun, contentsOf, readRuns } from './stored.ts'
import { parseTarHeader, TAR_BLOCK, TAR_END, tarPadding } from './tar.ts'
import { createTreeHasher } from './tree.ts'
import type { AttachmentName, BundleHead, ImageEntry } from './types.ts'
import { decompressStream } from './zstd.ts'

/** Everything behind the head of a bundle: framing, attachments, image data. */

/** Attachments are compressed with a window of at most 8 MiB. */
export const ATTACHMENT_WINDOW_LOG = 23

export interface VerifyOptions extends ReadOptions {
  /** Bytes of the bundle verified so far, of all. */
  readonly onProgress?: (done: number, total: number) => void
  /**
   * True: image data is compared with the signed digests of what is stored and not unpacked, attachments likewise. No
   * byte can differ from the publisher's; whether the publisher contradicts himself (what a chunk unpacks to, the
   * root) is left to the install that follows. A third of the work.
   */
  readonly storedOnly?: boolean
}

/**
 * Verifies a whole bundle: every byte of it is covered, so one flipped bit anywhere is refused. Memory does not grow
 * with the images.
 * @throws as `openBundle`; BUNDLE_HEADER, BUNDLE_PADDING, BUNDLE_DIGEST, BUNDLE_ATTACHMENT, BUNDLE_ROOT_HASH, ZSTD_*
 */
export async function verifyBundle(
  source: ByteSource,
  trust: { readonly trusted: TrustedRoots },
  options: VerifyOptions = {},
): Promise<BundleHead> {
  const head = await openBundle(source, trust, options)
  await verifyBehindHead(source, head, options)
  return head
}

/** As `verifyBundle`, for what stands behind the head that `openBundle` read and verified. */
export async function verifyBehindHead(
  source: ByteSource,
  head: BundleHead,
  options: VerifyOptions = {},
): Promise<void> {
  await checkFraming(source, head, options)
  for (const entry of head.statement.attachments) {
    if (options.storedOnly === true) await readStored(source, head, entry, options)
    else for await (const _ of readAttachment(source, head, entry.name, options));
  }
  for (const image of head.statement.images) await verifyImage(source, head, image, options)
  options.onProgress?.(head.size, head.size)
}

/**
 * Checks what stands between the members that an installer fetches: headers and padding of attachments and data, and
 * the end. A few small reads.
 * @throws BUNDLE_HEADER, BUNDLE_PADDING
 */
export async function checkFraming(source: ByteSource, head: BundleHead, options: ReadOptions = {}): Promise<void> {
  const members: (Member & { at: number })[] = [
    ...head.statement.attachments.map(({ name, length }) => ({
      name: attachmentName(name),
      size: length,
      at: attachmentOffset(head, name),
    })),
    ...head.statement.images.map(({ name, data }) => ({
      name: dataName(name),
      size: data.length,
      at: head.offsets.data[name],
    })),
  ]
  for (const member of members) {
    checkMember(parseTarHeader(await readExactly(source, member.at - TAR_BLOCK, TAR_BLOCK, options)), member)
    const padding = tarPadding(member.size)
    if (padding > 0)
      checkZero(await readExactly(source, member.at + member.size, padding, options), `the padding of ${member.name}`)
  }
  checkZero(await readExactly(source, head.size - TAR_END, TAR_END, options), 'the end of the bundle')
}

/**
 * Streams an attachment, unpacked. All its stored bytes (at most 64 MiB) are in memory and their digest is checked
 * before the first unpacked byte is handed out: a source may give other bytes on a second read.
 * @throws BUNDLE_ATTACHMENT when there is none of this name, BUNDLE_DIGEST, ZSTD_*
 */
export async function* readAttachment(
  source: ByteSource,
  head: BundleHead,
  name: AttachmentName,
  options: ReadOptions = {},
): AsyncGenerator<Uint8Array> {
  const entry = head.statement.attachments.find((attachment) => attachment.name === name)
  if (entry === undefined) throw bundleErrors.BUNDLE_ATTACHMENT(`the release has no ${name}`)
  yield* unpackAttachment(entry, await readStored(source, head, entry, options))
}

type Attachment = BundleHead['statement']['attachments'][number]

/** An attachment as stored, its digest checked. @throws BUNDLE_DIGEST */
export async function readStored(
  source: ByteSource,
  head: BundleHead,
  entry: Attachment,
  options: ReadOptions,
): Promise<Uint8Array> {
  const stored = await readExactly(source, attachmentOffset(head, entry.name), entry.length, options)
  checkAttachment(entry, stored)
  return stored
}

function checkAttachment(entry: Attachment, stored: Uint8Array): void {
  if (stored.length !== entry.length || sha256(stored) !== entry.sha256)
    throw bundleErrors.BUNDLE_DIGEST(`the stored bytes of ${entry.name} do not have the signed digest`)
}

/** As `readAttachment`, from stored bytes kept elsewhere (a slot's record). */
export async function* unpackAttachment(entry: Attachment, stored: Uint8Array): AsyncGenerator<Uint8Array> {
  checkAttachment(entry, stored)
  let unpacked = 0
  const limits = { atMost: entry.unpacked, windowLogMax: ATTACHMENT_WINDOW_LOG }
  for await (const piece of decompressStream([stored], limits)) {
    unpacked += piece.length
    yield piece
  }
  if (unpacked !== entry.unpacked)
    throw bundleErrors.BUNDLE_ATTACHMENT(`${entry.name} unpacks to ${unpacked} bytes, signed are ${entry.unpacked}`)
}

/** Every chunk, and the image that they make together unless only what is stored counts. */
async function verifyImage(
  source: ByteSource,
  head: BundleHead,
  image: ImageEntry,
  options: VerifyOptions,
): Promise<void> {
  const start = head.offsets.data[image.name]
  // Only the root is wanted: the pages of the tree are dropped as they are done.
  const tree = options.storedOnly === true ? undefined : createTreeHasher({ onPage: () => undefined })
  let told = 0
  const { chunks } = head.indexes[image.name]
  for await (const run of readRuns(source, start, chunks, options)) {
    checkRun(run, chunks)
    if (tree !== undefined) for (const { bytes } of contentsOf(run, chunks)) tree.update(bytes)
    const at = chunks[run.first]?.storedOffset ?? 0
    if (at - told < 4 * MiB) continue
    told = at
    options.onProgress?.(start + told, head.size)
  }
  if (tree === undefined) return
  const { root } = tree.finish()
  if (root !== image.root)
    throw bundleErrors.BUNDLE_ROOT_HASH(`the image ${image.name} has the root ${root}, signed is ${image.root}`)
}

function attachmentOffset(head: BundleHead, name: AttachmentName): number {
  const at = head.offsets.attachments[name]
  if (at === undefined) throw bundleErrors.BUNDLE_ATTACHMENT(`the release has no ${name}`)
  return at
}
