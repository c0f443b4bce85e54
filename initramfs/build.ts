/** The tree that the initramfs is made from, as paths without a leading slash ("usr/bin/busybox"). */
export interface InitramfsSource {
  /** Follows symlinks as a chroot would: the canonical path of an existing file or directory, or undefined. */
  resolve(path: string): string | undefined
  /** The content of a regular file, by canonical path. */
  read(path: string): Promise<Uint8Array>
  /** Names in a directory, by canonical path; empty when it is none. */
  list(path: string): readonly string[]
}

export interface InitramfsOptions {
  /** The kernel whose modules go in, as under /lib/modules. Undefined: the only one there is. */
  readonly kernel?: string
  /** Kernel modules beyond the built-in list ("virtio_blk"); one that does not exist is an error. */
  readonly modules?: readonly string[]
  /** Device-owned paths under /etc, with shell wildcards, carried over when a slot's /etc is made. */
  readonly owned?: readonly string[]
  /** Writable paths, bound from the data partition. */
  readonly writable?: readonly string[]
  /** A watchdog device started before anything else; the system must then feed it. */
  readonly watchdog?: string
}

export function buildInitramfs(_source: InitramfsSource, _options: InitramfsOptions = {}): Promise<Uint8Array> {
  throw new Error('not yet')
}
