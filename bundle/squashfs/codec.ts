import { inflateSync } from 'node:zlib'
import binding from 'zstd-napi/binding.js'
import { type Compression, corrupt } from './superblock.ts'

/**
 * Unpacks one stored block into at most `atMost` bytes; never allocates more than that.
 * @param at where the block stands in the image, for messages
 * @throws SQUASHFS_CORRUPT
 */
export type Unpack = (stored: Uint8Array, atMost: number, at: number) => Buffer

export function unpacker(compression: Compression): Unpack {
  const unpack = compression === 'zstd' ? zstdUnpacker() : inflate
  return (stored, atMost, at) => {
    try {
      return unpack(stored, atMost)
    } catch (cause) {
      throw corrupt(`the ${compression} block at byte ${at} cannot be unpacked into ${atMost} bytes`, cause)
    }
  }
}

function inflate(stored: Uint8Array, atMost: number): Buffer {
  return inflateSync(stored, { maxOutputLength: atMost, chunkSize: Math.max(64, atMost) })
}

/** One context for all blocks of an image: making one costs more than a small block. */
function zstdUnpacker(): (stored: Uint8Array, atMost: number) => Buffer {
  const context = new binding.DCtx()
  return (stored, atMost) => {
    const out = Buffer.allocUnsafeSlow(atMost)
    const length = context.decompress(out, stored)
    return length === atMost ? out : out.subarray(0, length)
  }
}
