import type { Sha256 } from '../../base/bytes.ts'
import type { Compression } from './decompress.ts'
import type { ImageConfig } from './documents.ts'
import type { FileRange } from './file-range.ts'

/** One layer, not yet read: where its bytes are and what they must be. */
export interface LayerInput {
  /** For messages: "layer 2 (DIGEST)". */
  readonly name: string
  readonly blob: FileRange
  readonly compression: Compression
  /** SHA-256 of the stored bytes, where the image names it. */
  readonly digest?: Sha256
  /** Stored size, where the image names it. */
  readonly size?: number
  /** SHA-256 of the unpacked tar, where the image names it. */
  readonly diffId?: Sha256
}

/** An image that was found and whose documents were read and checked; its layers are read by `mergeImage`. */
export interface ImageInput {
  readonly reference: string
  /** Digest of the manifest; of the config for docker-archive; undefined for a plain tar. */
  readonly digest?: Sha256
  readonly config: ImageConfig
  /** Lowest first. */
  readonly layers: readonly LayerInput[]
  /** False for a plain tar, where names starting with ".wh." mean nothing and are refused. */
  readonly whiteouts: boolean
  /** Removes what was fetched for it. */
  close(): Promise<void>
}
