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
  const unpack = compression === 'zstd' ? unzstd : inflate
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

// One context for all blocks: making one costs more than a small block. Each call starts anew, also after a failure.
let context: InstanceType<typeof binding.DCtx> | undefined

function unzstd(stored: Uint8Array, atMost: number): Buffer {
  context ??= new binding.DCtx()
  const out = Buffer.allocUnsafeSlow(atMost)
  const length = context.decompress(out, stored)
  return length === atMost ? out : out.subarray(0, length)
}
