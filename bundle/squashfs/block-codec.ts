import binding from 'zstd-napi/binding.js'

/**
 * The one definition of how a block of a SquashFS image of ours is compressed: data, fragment and metadata blocks alike.
 *
 * One zstd frame per block, made in one call at the image's level (every other parameter follows from the level and the
 * length), content size in the frame header, no checksum, no dictionary. A frame that is not shorter than its content is
 * thrown away and the content stored as it is, as mksquashfs does.
 *
 * The bytes depend on the content, the level and the version of the library, and on nothing else. So whoever has the
 * content, the level (`Squashfs.level`) and `blockLibrary` of the writer makes the stored block again, byte for byte.
 */

/** The library inside, as provenance and patches record it: "zstd 1.5.7". Other versions may make other bytes. */
export const blockLibrary: string = `zstd ${binding.versionString()}`

/** Levels that SquashFS images are written with. */
export const MIN_LEVEL = 1
export const MAX_LEVEL = 22
/** What mksquashfs uses, and does not write down, unless told. */
export const DEFAULT_LEVEL = 15

export interface PackedBlock {
  /** As it stands in the image, without a size word or header. When `plain`, the content itself and no copy. */
  readonly bytes: Uint8Array
  /** Stored as it is: compressing did not make it shorter. */
  readonly plain: boolean
}

// One context per thread, for all blocks: making one costs more than a small block. Each call starts anew.
let context: InstanceType<typeof binding.CCtx> | undefined
let scratch = Buffer.alloc(0)

/**
 * Compresses one block exactly as the writer does.
 * @param content 1 byte to 1 MiB
 * @param level 1 to 22
 */
export function compressBlock(content: Uint8Array, level: number): PackedBlock {
  if (!Number.isInteger(level) || level < MIN_LEVEL || level > MAX_LEVEL)
    throw new RangeError(`zstd level ${level}, wanted ${MIN_LEVEL} to ${MAX_LEVEL}`)
  context ??= new binding.CCtx()
  const bound = binding.compressBound(content.length)
  if (scratch.length < bound) scratch = Buffer.allocUnsafeSlow(bound)
  const length = context.compress(scratch, content, level)
  if (length >= content.length) return { bytes: content, plain: true }
  return { bytes: Uint8Array.prototype.slice.call(scratch, 0, length), plain: false }
}
