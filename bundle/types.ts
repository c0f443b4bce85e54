import type { Sha256 } from '../base/bytes.ts'
import type { TrustedRoots } from '../keys/types.ts'
import type { AssignmentStatement } from './assignment.ts'

/** Releases compare as (epoch, counter). Both are safe integers >= 0. */
export interface ReleaseNumber {
  readonly epoch: number
  readonly counter: number
}

/** `boot`: kernel, initramfs, command line. `rootfs`: the operating system. One each, in this order, in format 1. */
export type ImageName = 'boot' | 'rootfs'
export const IMAGE_NAMES = ['boot', 'rootfs'] as const satisfies readonly ImageName[]

export interface ImageEntry {
  readonly name: ImageName
  /** Bytes of the image; a multiple of 4096, at least 4096. */
  readonly length: number
  /** Root of the unsalted SHA-256 Merkle tree over 4096-byte blocks (dm-verity hash type 1, fs-verity block size 4096). */
  readonly root: Sha256
  /** The chunk index member: exact stored bytes. */
  readonly index: { readonly length: number; readonly sha256: Sha256 }
  /** The data member: sum of the stored lengths of all chunks. */
  readonly data: { readonly length: number }
}

export type AttachmentName = 'inventory' | 'sbom' | 'provenance'
/** Order of the attachments in a bundle. Each is optional. */
export const ATTACHMENT_NAMES = ['inventory', 'sbom', 'provenance'] as const satisfies readonly AttachmentName[]

export interface AttachmentEntry {
  readonly name: AttachmentName
  /** Bytes as stored in the bundle (zstd frame). */
  readonly length: number
  readonly sha256: Sha256
  /** Bytes after decompression; a hard limit for the reader. */
  readonly unpacked: number
}

export const RELEASE_PAYLOAD_TYPE = 'application/vnd.bistable.release.v1+json'

/** The payload of a release statement, parsed and validated. */
export interface ReleaseStatement {
  readonly type: 'release'
  readonly product: string
  /** Hardware identifiers this release runs on; at least one. */
  readonly hardware: readonly string[]
  readonly number: ReleaseNumber
  /** For people: "2.0.0". Decides nothing. */
  readonly version: string
  /** Nothing older than this even boots, once this release is committed. */
  readonly securityFloor: ReleaseNumber
  /** Oldest root version whose keys may have signed this. */
  readonly rootVersion: number
  readonly issued: string
  readonly images: readonly ImageEntry[]
  readonly attachments: readonly AttachmentEntry[]
}

export type ChunkEncoding = 'raw' | 'zstd'

/** A piece of an image, named by its SHA-256. */
export interface Chunk {
  /** SHA-256 of the content. */
  readonly digest: Sha256
  /** Where in the image. */
  readonly offset: number
  /** Bytes of content: 1 .. 1 MiB. */
  readonly length: number
  readonly encoding: ChunkEncoding
  /** Where in the image's data member. */
  readonly storedOffset: number
  /** Bytes as stored; equals `length` when raw, and is smaller when zstd. */
  readonly storedLength: number
  /** SHA-256 of the stored bytes; equals `digest` when raw. Checked before decompression. */
  readonly storedDigest: Sha256
}

export interface ChunkIndex {
  readonly imageLength: number
  readonly chunks: readonly Chunk[]
}

/** An assignment whose signatures were verified. */
export interface AuthenticAssignment {
  readonly statement: AssignmentStatement
  /** SHA-256 of its payload. */
  readonly digest: Sha256
}

/** Everything of a bundle that comes before the image data, authenticated. */
export interface BundleHead {
  readonly roots: readonly Uint8Array[]
  /** Exact bytes of the release envelope (kept per slot on the device). */
  readonly envelope: Uint8Array
  readonly statement: ReleaseStatement
  /** SHA-256 of the statement's payload: the release's digest, its name in block lists and reports. */
  readonly digest: Sha256
  readonly trusted: TrustedRoots
  /** Names this release; not yet judged by device, sequence and time. */
  readonly assignment: AuthenticAssignment | undefined
  readonly indexes: Readonly<Record<ImageName, ChunkIndex>>
  /** Exact stored bytes of each chunk index. */
  readonly indexBytes: Readonly<Record<ImageName, Uint8Array>>
  /** Bytes in front of the attachments that were not read, because `indexOf` had them. */
  readonly spared: number
  /** Where each attachment and each image's data starts in the bundle file. */
  readonly offsets: {
    readonly attachments: Readonly<Partial<Record<AttachmentName, number>>>
    readonly data: Readonly<Record<ImageName, number>>
  }
  /** Total bytes of the bundle, exact, derived from the signed statement. */
  readonly size: number
}

/** One entry of the inventory: a path of the rootfs and its attributes. */
export interface InventoryEntry {
  /** Absolute, "/usr/bin/env". UTF-8, no control bytes. */
  readonly path: string
  readonly type: 'file' | 'dir' | 'symlink' | 'char' | 'block' | 'fifo' | 'socket'
  /** Permission bits, 0 .. 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size?: number
  /** fs-verity digest (SHA-256, 4096, no salt) of a file's content. */
  readonly digest?: Sha256
  readonly target?: string
  readonly rdev?: readonly [major: number, minor: number]
  /** Extended attributes, name to base64 value, sorted by name. */
  readonly xattrs?: Readonly<Record<string, string>>
}
