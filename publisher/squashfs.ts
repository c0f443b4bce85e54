import { availableParallelism } from 'node:os'
import { runTool } from './tools.ts'
import type { NodeAttributes } from './tree.ts'

/** Builds the SquashFS image from a clean tar stream. */

export interface SquashfsOptions {
  /** Bytes; a power of two, 4 KiB .. 1 MiB. */
  readonly blockSize: number
  /** zstd level, 1 .. 22. */
  readonly level: number
  /** Creation time in the superblock, seconds since 1970. File times come from the tar. */
  readonly time: number
  /** The root directory's attributes: sqfstar takes them from options, not from the tar. */
  readonly rootDirectory: Pick<NodeAttributes, 'mode' | 'uid' | 'gid' | 'mtime'>
  /** Compression threads; the image's bytes do not depend on it. */
  readonly processors?: number
  readonly signal?: AbortSignal
}

/** What sqfstar may use for its queues and caches: the build as a whole stays within 512 MiB. */
const SQFSTAR_MEMORY = '160M'

/** Writes the image to the new file `output`. @throws TOOL_MISSING, TOOL_FAILED, or what the tar stream throws */
export async function makeSquashfs(
  tar: AsyncIterable<Uint8Array>,
  output: string,
  options: SquashfsOptions,
): Promise<void> {
  const { mode, uid, gid, mtime } = options.rootDirectory
  const processors = options.processors ?? availableParallelism()
  await runTool(
    'sqfstar',
    // biome-ignore format: option and value stand together
    ['-comp', 'zstd', '-Xcompression-level', String(options.level), '-b', String(options.blockSize), '-reproducible',
     '-mkfs-time', String(options.time), '-processors', String(processors), '-mem', SQFSTAR_MEMORY, '-exit-on-error',
     '-root-mode', mode.toString(8), '-root-uid', String(uid), '-root-gid', String(gid), '-root-time', String(mtime),
     '-no-progress', '-quiet', output],
    { input: tar, ...(options.signal === undefined ? {} : { signal: options.signal }) },
  )
}
