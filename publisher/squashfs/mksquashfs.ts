import { availableParallelism } from 'node:os'
import { isBistableError } from '../../base/errors.ts'
import { publisherErrors } from '../errors.ts'
import { runTool, type ToolName } from '../tools.ts'

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
/** The first version in which -root-uid and -root-gid hold for a tar too. */
const HEEDS_ROOT_UID = 4.6

/**
 * Writes the image to the new file `output`.
 *
 * `mksquashfs -tar` and not sqfstar: the same program, but sqfstar 4.5.1 cannot read a compression level. In this mode
 * 4.5.1 gives the root directory the user and group that run it, the time now and no xattrs, whatever tar and options
 * say. SOURCE_DATE_EPOCH caps that time; in a user namespace an ordinary user's number is 0, as root's is. Versions that
 * heed -root-uid need none.
 * @throws TOOL_MISSING, TOOL_FAILED, or what the tar stream throws
 */
export async function makeSquashfs(
  tar: AsyncIterable<Uint8Array>,
  output: string,
  options: SquashfsOptions,
): Promise<void> {
  const { blockSize, level, processors = availableParallelism(), rootMode, time, signal } = options
  const [tool, ...before] = await asUserZero()
  await runTool(
    tool,
    // biome-ignore format: option and value stand together
    [...before, '-', output, '-tar', '-comp', 'zstd', '-Xcompression-level', String(level), '-b', String(blockSize),
     '-reproducible', '-processors', String(processors), '-mem', BUILDER_MEMORY, '-root-mode', rootMode.toString(8),
     '-root-uid', '0', '-root-gid', '0', '-exit-on-error', '-no-progress', '-quiet'],
    { input: tar, env: { SOURCE_DATE_EPOCH: String(time) }, ...(signal === undefined ? {} : { signal }) },
  )
}

/** The builder's command, with what makes its user number 0 in front where that is needed. @throws TOOL_FAILED */
async function asUserZero(): Promise<readonly [ToolName, ...string[]]> {
  const user = process.getuid?.() ?? 0
  if (user === 0) return ['mksquashfs']
  const { out } = await runTool('mksquashfs', ['-version'])
  const version = /version ([0-9.]+)/.exec(out)?.[1] ?? 'unknown'
  if (Number.parseFloat(version) >= HEEDS_ROOT_UID) return ['mksquashfs']
  try {
    await runTool('unshare', ['--map-root-user', 'true'])
    return ['unshare', '--map-root-user', 'mksquashfs']
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw publisherErrors.TOOL_FAILED(
      `mksquashfs ${version} would make user ${user} the owner of the root directory, and there is no user namespace to run it in: ${cause.message}`,
      { cause, next: 'Run the build as root, allow user namespaces, or install squashfs-tools 4.6 or newer.' },
    )
  }
}
