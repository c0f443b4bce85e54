import type { Sha256 } from '../../base/bytes.ts'
import type { FileType } from '../../base/file-type.ts'

/** The configuration trees that a merge compares, and what it says about them. Paths are relative to /etc. */

export type EtcType = FileType

export interface EtcEntry {
  /** "ssh/sshd_config"; the folder itself is "". */
  readonly path: string
  readonly type: EtcType
  /** Permission bits, 0 .. 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Of a file: bytes and SHA-256 of the content. */
  readonly size?: number
  readonly digest?: Sha256
  /** Of a symlink. */
  readonly target?: string
  /** Name to base64 value. Undefined: they could not be read here, and are neither compared nor carried. */
  readonly xattrs: ReadonlyMap<string, string> | undefined
  /** The same for paths that are hard links of one file. */
  readonly inode?: string
}

export interface EtcTree {
  readonly entries: ReadonlyMap<string, EtcEntry>
  /** Paths whose names are not UTF-8, as far as they can be shown: they cannot be carried. */
  readonly unnamed?: readonly string[]
  /** Content of a file of this tree, in pieces, each valid until the next. */
  read(path: string): AsyncIterable<Uint8Array> | Iterable<Uint8Array>
}

/** What to do where both sides changed a path. */
export const POLICIES = ['local', 'image', 'refuse'] as const
export type EtcPolicy = (typeof POLICIES)[number]

/** `merge`: three ways; `image`: the image's, with owned paths only. */
export const ETC_MODES = ['merge', 'image', 'transient'] as const
export type EtcMode = (typeof ETC_MODES)[number]

export interface EtcRule {
  /** A path under /etc, with "*" (within a name) and "**" (across names). */
  readonly path: string
  readonly policy: EtcPolicy
}

export interface EtcChoices {
  readonly mode: EtcMode
  /** The first that matches counts; else `local`. */
  readonly rules: readonly EtcRule[]
  /** The device's value is kept even when it equals the old default. */
  readonly pinned: readonly string[]
  /** Follow the device, whatever the image has. */
  readonly owned: readonly string[]
}

export type EtcFindingKind =
  | 'both-changed'
  | 'both-added'
  | 'changed-here-deleted-in-image'
  | 'deleted-here-changed-in-image'
  | 'directory-kept-for-new-files'
  | 'attributes-differ'
  | 'attributes-kept'
  | 'type-changed-here'
  | 'type-conflict'
  | 'converged'
  | 'text-merged'
  | 'accounts-merged'
  | 'account-collision'
  | 'special-dropped'
  | 'not-carried'

/** One thing that a person may want to know. */
export interface EtcFinding {
  /** Absolute: "/etc/ssh/sshd_config". */
  readonly path: string
  readonly kind: EtcFindingKind
  /** `note`: nothing was in doubt; `conflict`: a policy decided; `refused`: nothing decides, the install is refused. */
  readonly level: 'note' | 'conflict' | 'refused'
  /** What was taken: the device's, the image's, both, or none. */
  readonly taken: 'local' | 'image' | 'both' | 'none'
  /** The rule that decided: a path glob, or "default". */
  readonly rule: string
  /** SHA-256 of content, or target, or type: of the old image, the device, and the new image. */
  readonly old?: string
  readonly local?: string
  readonly image?: string
  readonly detail?: string
}

/** A path of the merged tree: whose body it has, and its own attributes. */
export interface EtcPlanned {
  readonly path: string
  readonly type: EtcType
  readonly from: 'local' | 'image' | 'made'
  /** Of `made`: the content. */
  readonly content?: Uint8Array
  readonly target?: string
  readonly digest?: Sha256
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly xattrs: ReadonlyMap<string, string>
  /** The path whose file this one is a further name of. */
  readonly linkTo?: string
}

export interface EtcPlan {
  /** Folders before what is in them. */
  readonly entries: readonly EtcPlanned[]
  readonly findings: readonly EtcFinding[]
}
