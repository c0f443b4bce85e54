import { availableParallelism } from 'node:os'
import { runTool } from './tools.ts'

/** Builds the SquashFS image from a clean tar stream. */

export interface SquashfsOptions {
  /** Bytes; a power of two, 4 KiB .. 1 MiB. */
  readonly blockSize: number
  /** zstd level, 1 .. 22. */
  readonly level: number
  /**
   * Seconds since 1970: creation time in the superblock, and of the root directory. No file in the tar is newer, and it
   * is not in the future.
   */
  readonly time: number
  /** Permission bits of the root directory, which belongs to root. */
  readonly rootMode: number
  /** Compression threads; the image's bytes do not depend on it. */
  readonly processors?: number
  readonly signal?: AbortSignal
}

/** What mksquashfs may use for its queues and caches: the build as a whole stays within 512 MiB. */
const BUILDER_MEMORY = '160M'

/**
 * Writes the image to the new file `output`.
 *
 * `mksquashfs -tar` and not sqfstar: the same program, but sqfstar 4.5.1 cannot read a compression level. In this mode
 * 4.5.1 gives the root directory uid 0, the time now and no xattrs, whatever tar and options say; SOURCE_DATE_EPOCH caps
 * that time.
 * @throws TOOL_MISSING, TOOL_FAILED, or what the tar stream throws
 */
export async function makeSquashfs(
  tar: AsyncIterable<Uint8Array>,
  output: string,
  options: SquashfsOptions,
): Promise<void> {
  const { blockSize, level, processors = availableParallelism(), rootMode, time, signal } = options
  await runTool(
    'mksquashfs',
    // biome-ignore format: option and value stand together
    ['-', output, '-tar', '-comp', 'zstd', '-Xcompression-level', String(level), '-b', String(blockSize),
     '-reproducible', '-processors', String(processors), '-mem', BUILDER_MEMORY, '-root-mode', rootMode.toString(8),
     '-exit-on-error', '-no-progress', '-quiet'],
    { input: tar, env: { SOURCE_DATE_EPOCH: String(time) }, ...(signal === undefined ? {} : { signal }) },
  )
}
