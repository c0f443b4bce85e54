import type { ByteSource } from '../../base/source.ts'
import type { BundleHead, ChunkIndex, ImageName } from '../../bundle/types.ts'
import type { Freshness, SlotDevice } from '../slots/types.ts'
import type { Journal } from './journal.ts'
import type { Patch } from './patch.ts'

/**
 * Another place whose bytes may serve, with the index of what it is said to hold: the active slot, an earlier content of
 * the inactive one, a bundle on a stick. Never trusted.
 */
export interface ReuseSource {
  /** For reports. */
  readonly name: string
  readonly index: ChunkIndex
  readonly device: Pick<SlotDevice, 'read' | 'size'>
  /** This place is the one that the named image is written to: good for what stands at or behind where it is wanted. */
  readonly overwrittenBy?: ImageName
}

export type InstallPhase = 'scan' | 'fill' | 'verify' | 'finish'

export interface InstallProgress {
  readonly phase: InstallPhase
  readonly image: ImageName | undefined
  /** Image bytes of this phase and image that are done, and in all. */
  readonly done: number
  readonly total: number
  /** Stored bytes that came through the door so far, over both images. */
  readonly fetched: number
}

export interface InstallRequest {
  readonly source: ByteSource
  /** From `openBundle`: authenticated, and allowed by `checkApplies`. */
  readonly head: BundleHead
  /** The inactive slot, open for writing. The caller closes them. */
  readonly slot: Readonly<Record<ImageName, SlotDevice>>
  readonly reuse?: readonly ReuseSource[]
  /**
   * Reading the source costs no more than reading the slot: a slot in which a few samples find nothing of use is not
   * searched, but written whole. Default: false, every byte that the slot holds already is looked for.
   */
  readonly cheapSource?: boolean
  readonly signal?: AbortSignal
  readonly onProgress?: (progress: InstallProgress) => void
  /** Checked by `checkPatch`; used for what is lacking, as far as it takes fewer bytes than chunks. */
  readonly patch?: Patch
  /** An inventory that is not fetched whole, and the bytes that it takes yet. Undefined: it is. */
  readonly inventory?: { readonly bytes: number }
  /** Bytes of hints that were fetched already. */
  readonly hintBytes?: number
  /** Fail with INSTALL_BUDGET rather than take more bytes through the door; see plan.ts for what counts. */
  readonly maxBytes?: number
  /** What the install decides and does, line by line; see journal.ts. */
  readonly journal?: Journal
  /**
   * Called once, before the first write to the slot (not when the slot already holds everything): the boot state must
   * stop naming this slot (no trial, no spare), durably, and what the device has recorded about the slot is void.
   */
  readonly invalidate: () => Promise<void>
  /** Called after the slot was verified on the medium: persist the release, roots, indexes and inventory of the slot. */
  readonly beforeArm: () => Promise<void>
  /** The single boot-state write. Called last, at most once; cancelling has no effect from here on. */
  readonly arm: () => Promise<void>
  /** Milliseconds, monotonic. Default: performance.now. */
  readonly now?: () => number
}

export interface ImageResult {
  /** Image bytes that the slot already held, that came from reuse sources, and that came through the door. */
  readonly kept: number
  readonly reused: number
  readonly fetched: number
  /** Image bytes that a patch rebuilt; absent without one. */
  readonly patched?: number
}

export interface InstallResult {
  readonly images: Readonly<Record<ImageName, ImageResult>>
  /** Stored bytes of chunks and of patches that came through the door (headers and indexes, read by `openBundle`, aside). */
  readonly fetched: number
  /** The weaker of the two devices: what reading back proves. */
  readonly freshness: Freshness
}
