import { stat } from 'node:fs/promises'
import type { Measured } from '../measure.ts'

/** One root file system as everyone's input. */
export interface Side {
  readonly bundle: string
  /** As the publisher wrote it, and the same tree without any compression. */
  readonly squashfs: string
  readonly plain: string
  /** The same tree as files. */
  readonly tree: string
}

export interface Both {
  readonly folder: string
  readonly old: Side
  readonly next: Side
}

/** What something took. `peakMiB` is the whole process, or what came on top of an idle agent where it says so. */
export interface Cost {
  readonly seconds: number
  readonly cpuSeconds: number
  readonly peakMiB: number
}

/** What one technique takes for one pair. */
export interface Found {
  /** To move to the device: the patch, or pieces and what names them. */
  readonly bytes: number
  /** What moves besides, measured of ours; the others' rows leave theirs out: statement, keys, framing, the boot image, an inventory. */
  readonly besides?: number
  /** Bytes of all images that applying wrote: of ours the boot image too. */
  readonly installed?: number
  /** Bytes of the new root file system's image, where it is another one than the pair's. */
  readonly image?: number
  readonly make?: Cost
  readonly apply?: Cost
  readonly requests?: number
}

export const cost = ({ seconds, cpuSeconds, peakMiB }: Measured): Cost => ({ seconds, cpuSeconds, peakMiB })
export const sizeOf = async (path: string): Promise<number> => (await stat(path)).size
