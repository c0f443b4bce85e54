import type { Sha256 } from '../../base/bytes.ts'
import { encodeIndex } from '../../bundle/chunks.ts'
import { sha256 } from '../../bundle/digest.ts'
import { encodeHints, type HintedRelease } from '../../bundle/hints/format.ts'
import { hintsOf } from '../../bundle/hints/index-rows.ts'
import { pagesOf } from '../../bundle/hints/pages.ts'
import { ATTACHMENT_LEVEL } from '../../bundle/release.ts'
import type { AttachmentEntry, Chunk, ImageEntry, ImageName } from '../../bundle/types.ts'
import { compress } from '../../bundle/zstd.ts'

/** Chunk indexes of images that nobody has, what happens to them from one release to the next, and hints of them. */

export type Entry = Pick<Chunk, 'digest' | 'length' | 'encoding' | 'storedLength' | 'storedDigest'>

const digest = (text: string): Sha256 => sha256(Buffer.from(text))

/** @param raw part of the chunks that are stored as they are */
export function randomEntry(random: () => number, raw = 0.7): Entry {
  const below = (n: number): number => Math.floor(random() * n)
  const name = digest(String(random()))
  if (random() < raw) {
    const length = 4096 * (1 + below(16))
    return { digest: name, length, encoding: 'raw', storedLength: length, storedDigest: name }
  }
  return { digest: name, length: 8192, encoding: 'zstd', storedLength: 1 + below(8000), storedDigest: digest(name) }
}

/** Some entries gone, some new, and now and then the whole turned about. */
export function changedEntries(
  random: () => number,
  old: readonly Entry[],
  changes: number,
  fresh: () => Entry,
): Entry[] {
  const below = (n: number): number => Math.floor(random() * n)
  const next = [...old]
  for (let n = 0; n < changes; n++)
    next.splice(below(next.length + 1), below(4), ...Array.from({ length: below(3) }, fresh))
  if (random() < 0.3) next.push(...next.splice(0, below(next.length)))
  return next.length === 0 ? [fresh()] : next
}

export function encodeEntries(entries: readonly Entry[]): Uint8Array {
  let [offset, storedOffset] = [0, 0]
  const chunks = entries.map((one) => {
    const chunk = { ...one, offset, storedOffset }
    offset += one.length
    storedOffset += one.storedLength
    return chunk
  })
  return encodeIndex({ imageLength: offset, chunks })
}

const DIGEST = sha256(Buffer.from('a release'))

export interface Hinted {
  readonly release: HintedRelease
  readonly bytes: Uint8Array
  readonly index: Readonly<Record<ImageName, Uint8Array>>
  readonly stored: Uint8Array
}

export function storedInventory(
  text: string,
  level = ATTACHMENT_LEVEL,
): { entry: AttachmentEntry; stored: Uint8Array } {
  const stored = compress(Buffer.from(text), level)
  const facts = { length: stored.length, sha256: sha256(stored), unpacked: Buffer.byteLength(text) }
  return { stored, entry: { name: 'inventory', ...facts } }
}

/** As a publisher makes them, of two indexes and an inventory. */
export function hinted(boot: Uint8Array, rootfs: Uint8Array, text = '{"path":"/","type":"dir"}\n'): Hinted {
  const { entry, stored } = storedInventory(text)
  const image = (name: ImageName, index: Uint8Array): ImageEntry => ({
    ...{ name, length: Number(Buffer.from(index).readBigUInt64LE(16)), root: DIGEST, data: { length: 1 } },
    index: { length: index.length, sha256: sha256(index) },
  })
  const statement = { images: [image('boot', boot), image('rootfs', rootfs)], attachments: [entry] }
  const images = { boot: hintsOf(boot), rootfs: hintsOf(rootfs) }
  const bytes = encodeHints({ release: DIGEST, images, ...pagesOf(stored, entry) })
  return { release: { statement, digest: DIGEST }, bytes, index: { boot, rootfs }, stored }
}
