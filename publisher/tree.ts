import type { Sha256 } from '../base/bytes.ts'

/**
 * The merged file tree of an image: what the layers say, never extracted onto the host.
 *
 * File contents live in a content store on disk, named by their SHA-256; hard links share one node.
 */

export interface NodeAttributes {
  /** Permission bits, 0 .. 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970, whole. */
  readonly mtime: number
  /** Sorted by name; values are exact bytes. */
  readonly xattrs: ReadonlyMap<string, Uint8Array>
}

export type TreeNode =
  | ({ readonly type: 'dir' } & NodeAttributes)
  | ({ readonly type: 'file'; readonly size: number; readonly content: Sha256 } & NodeAttributes)
  | ({ readonly type: 'symlink'; readonly target: string } & NodeAttributes)
  | ({ readonly type: 'char' | 'block'; readonly rdev: readonly [number, number] } & NodeAttributes)
  | ({ readonly type: 'fifo' } & NodeAttributes)

export interface TreeEntry {
  /** Without a leading slash, no "." or ".." parts: "usr/bin/env". The root directory is "". */
  readonly path: string
  readonly node: TreeNode
  /** Same number, same inode. Entries with a `link` share one `node` object. Undefined: link count 1. */
  readonly link?: number
}

export interface MergedTree {
  /** All entries in byte order of their paths; every parent is present and precedes its children. */
  entries(): Iterable<TreeEntry>
  get(path: string): TreeEntry | undefined
  /** Follows symlinks inside the tree (as a chroot would); undefined when it leads nowhere or loops. */
  resolve(path: string): TreeEntry | undefined
  children(path: string): readonly TreeEntry[]
  /** Streams a file's content from the content store. */
  content(node: TreeNode & { type: 'file' }): AsyncIterable<Uint8Array>
  /** Reads a small file whole; typed error when it is larger than `atMost` bytes. */
  readSmall(node: TreeNode & { type: 'file' }, atMost: number): Promise<Uint8Array>
  /** What the image config says. */
  readonly config: { readonly architecture: string; readonly labels: Readonly<Record<string, string>> }
  /** For reports: setuid files, dropped device nodes, name pairs that differ only by case or Unicode form. */
  readonly findings: readonly { readonly kind: string; readonly path: string; readonly detail: string }[]
}
