import type { Slot } from '../../bootloader/state.ts'
import type { ImageName } from '../../bundle/types.ts'

/**
 * How far a fresh read reaches.
 * `direct`: past the page cache of this system, to the medium (whatever cache the medium itself has was told to flush).
 * `dropped`: the page cache was emptied first, the read then came from the medium.
 * `cached`: neither was possible (a file in memory, not root): a lost write may go unseen until dm-verity finds it.
 */
export type Freshness = 'direct' | 'dropped' | 'cached'

/** One place that holds an image: the only way by which an install touches a disk. */
export interface SlotDevice {
  /** For messages: the path. */
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly freshness: Freshness
  /** Fills all of `into` from `offset`; with `fresh`, from the medium as `freshness` says. */
  read(offset: number, into: Uint8Array, options: { readonly fresh: boolean }): Promise<void>
  /** Writes all of `bytes` at `offset`. The bytes may be reused when it resolves. Nothing is promised before `flush`. */
  write(offset: number, bytes: Uint8Array): Promise<void>
  /** When it resolves, every write that had resolved before the call outlives a power cut. */
  flush(): Promise<void>
  close(): Promise<void>
}

/** Where one image of a slot lives. */
export interface SlotPlace {
  /** `/dev/vda6`, or a file. */
  readonly path: string
  readonly kind: 'block' | 'file'
  /** Bytes. */
  readonly size: number
  /** Kernel name of a block device (`vda6`); undefined for a file. */
  readonly kernelName: string | undefined
}

export type SlotPlaces = Readonly<Record<ImageName, SlotPlace>>
export type SlotTable = Readonly<Record<Slot, SlotPlaces>>

/** Slot paths given by hand: tests, and slots that are files. */
export type SlotPaths = Readonly<Record<Slot, Readonly<Record<ImageName, string>>>>
