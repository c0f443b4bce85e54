import { MiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { sha256 } from '../digest.ts'
import { ATTACHMENT_LEVEL } from '../release.ts'
import type { AttachmentEntry, ImageEntry } from '../types.ts'
import { compress, compressAgainst, decompressAgainst, decompressExactly } from '../zstd.ts'
import { deltaErrors } from './errors.ts'

/**
 * What a device needs of a release besides its images, each as a patch against the same of the old release: the chunk
 * indexes, byte for byte as signed, and the unpacked inventory. Where little changes they are most of what would move.
 */
export const SIDES = ['boot', 'rootfs', 'inventory'] as const
export type SideName = (typeof SIDES)[number]
/** Empty: not there, the whole is fetched. */
export type Sides = Readonly<Record<SideName, Uint8Array>>

const NONE = new Uint8Array(0)
export const NO_SIDES: Sides = { boot: NONE, rootfs: NONE, inventory: NONE }

const LEVEL = 19

/**
 * One side.
 * @param instead bytes that are fetched without it; a side that is no shorter is left out
 */
export function packSide(next: Uint8Array, old: Uint8Array, instead: number): Uint8Array {
  const packed = compressAgainst(next, old, LEVEL)
  return packed.length < instead ? packed : NONE
}

/**
 * What a side stands for: as good as the patch, the caller compares it with the signed digest.
 * @param length bytes that were signed: nothing longer is made
 * @throws DELTA_INVALID
 */
function unpackSide(side: Uint8Array, old: Uint8Array, length: number): Uint8Array {
  try {
    return decompressAgainst(side, old, length)
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw deltaErrors.DELTA_INVALID(`patch: beside its units: ${cause.message}`)
  }
}

/**
 * The chunk index of an image, as signed.
 * @param old that of the old release, verified
 * @throws DELTA_INVALID, DELTA_DIGEST
 */
export function indexFrom(side: Uint8Array, old: Uint8Array, image: ImageEntry): Uint8Array {
  const bytes = unpackSide(side, old, image.index.length)
  return withDigest(bytes, image.index.sha256, `the chunk index of ${image.name}`)
}

/** An inventory as a bundle stores it, and what its statement says of it. */
export interface StoredInventory {
  readonly entry: AttachmentEntry
  /** Verified. */
  readonly stored: Uint8Array
}

/** Both inventories are held unpacked: larger ones are fetched. */
const MAX_INVENTORY = 16 * MiB

/** Empty when a side would not give exactly the stored bytes, or no fewer would move. */
export function packInventory(old: StoredInventory, next: StoredInventory): Uint8Array {
  if (Math.max(old.entry.unpacked, next.entry.unpacked) > MAX_INVENTORY) return NONE
  const content = decompressExactly(next.stored, next.entry.unpacked)
  // Compressed by another level or library, it could not be made again.
  if (sha256(compress(content, ATTACHMENT_LEVEL)) !== next.entry.sha256) return NONE
  return packSide(content, decompressExactly(old.stored, old.entry.unpacked), next.stored.length)
}

/**
 * The inventory as stored and signed.
 * @throws DELTA_INVALID, DELTA_DIGEST
 */
export function inventoryFrom(side: Uint8Array, old: StoredInventory, next: AttachmentEntry): Uint8Array {
  const most = Math.max(old.entry.unpacked, next.unpacked)
  if (most > MAX_INVENTORY)
    throw deltaErrors.DELTA_INVALID(`patch: an inventory of ${most} bytes, at most ${MAX_INVENTORY} are patched`)
  const content = unpackSide(side, decompressExactly(old.stored, old.entry.unpacked), next.unpacked)
  return withDigest(compress(content, ATTACHMENT_LEVEL), next.sha256, 'the inventory')
}

function withDigest(bytes: Uint8Array, digest: string, what: string): Uint8Array {
  if (sha256(bytes) !== digest) throw deltaErrors.DELTA_DIGEST(`a patch makes ${what} otherwise than signed`)
  return bytes
}

/** Leaves sides out, the largest first, until they take at most `room` bytes in all. Pure. */
export function withinLimit(sides: Sides, room: number): Sides {
  const kept: Record<SideName, Uint8Array> = { ...sides }
  const total = (): number => SIDES.reduce((sum, name) => sum + kept[name].length, 0)
  while (total() > Math.max(0, room)) {
    const [largest] = [...SIDES].sort((a, b) => kept[b].length - kept[a].length)
    if (largest !== undefined) kept[largest] = NONE
  }
  return kept
}
