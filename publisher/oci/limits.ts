import { KiB, MiB } from '../../base/bytes.ts'
import { ociErrors } from './errors.ts'

/** Bounds on what an image may make us read and keep. An honest Debian system of 2 GiB has some 60 000 entries. */
export interface Limits {
  readonly layers: number
  /** Tar entries over all layers, and directories that paths only imply. */
  readonly entries: number
  /** Unpacked bytes over all layers. */
  readonly bytes: number
  /** Unpacked bytes per stored byte of one layer, once 64 MiB are unpacked. */
  readonly ratio: number
  /** Names in one path. */
  readonly depth: number
  /** Bytes of one PAX header or GNU long name. */
  readonly extended: number
  /** Bytes of all extended headers together: they stay in memory as xattrs. */
  readonly extendedTotal: number
  /** Extended attributes over all entries; one of two bytes takes some 400 in memory. */
  readonly xattrs: number
  /** Index documents and manifests opened while looking for one image. */
  readonly documents: number
}

export const DEFAULT_LIMITS: Limits = {
  layers: 128,
  entries: 300_000,
  bytes: 64 * 1024 * MiB,
  ratio: 256,
  depth: 128,
  extended: MiB,
  extendedTotal: 256 * MiB,
  xattrs: 400_000,
  documents: 256,
}

/** Longest index, manifest or config. */
export const MAX_DOCUMENT = 4 * MiB
/** The kernel's NAME_MAX. */
export const MAX_NAME = 255
/** The kernel's PATH_MAX counts the final NUL. */
export const MAX_PATH = 4095
/** The kernel's XATTR_SIZE_MAX. */
export const MAX_XATTR = 64 * KiB
/** Below this many unpacked bytes the ratio says nothing: a small tar of zeros is mostly padding. */
const RATIO_FROM = 64 * MiB

/** Counts what one image has used of its limits. */
export class Budget {
  readonly limits: Limits
  #entries = 0
  #bytes = 0
  #extended = 0
  #xattrs = 0

  constructor(limits: Limits) {
    this.limits = limits
  }

  entry(): void {
    if (++this.#entries > this.limits.entries)
      throw ociErrors.LAYER_LIMIT(`the image has more than ${this.limits.entries} entries`)
  }

  extended(bytes: number): void {
    if (bytes > this.limits.extended)
      throw ociErrors.LAYER_LIMIT(`an extended header has ${bytes} bytes, at most ${this.limits.extended} are read`)
    this.#extended += bytes
    if (this.#extended > this.limits.extendedTotal)
      throw ociErrors.LAYER_LIMIT(`the extended headers have more than ${this.limits.extendedTotal} bytes together`)
  }

  xattrs(count: number): void {
    this.#xattrs += count
    if (this.#xattrs > this.limits.xattrs)
      throw ociErrors.LAYER_LIMIT(`the image has more than ${this.limits.xattrs} extended attributes`)
  }

  /** Passes a layer's unpacked stream on; `stored` is the size of its blob. */
  async *unpacked(pieces: AsyncIterable<Uint8Array>, stored: number): AsyncGenerator<Uint8Array> {
    let layer = 0
    for await (const piece of pieces) {
      layer += piece.length
      this.#bytes += piece.length
      if (this.#bytes > this.limits.bytes)
        throw ociErrors.LAYER_LIMIT(`the image unpacks to more than ${this.limits.bytes} bytes`)
      if (layer > RATIO_FROM && layer > stored * this.limits.ratio)
        throw ociErrors.LAYER_LIMIT(`a layer of ${stored} bytes unpacks to more than ${this.limits.ratio} times that`)
      yield piece
    }
  }
}
