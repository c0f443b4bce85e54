import { createGunzip, type Gunzip } from 'node:zlib'
import zstd from 'zstd-napi/binding.js'
import { systemCode } from '../../base/errors.ts'
import { ociErrors } from './errors.ts'

/** Layer compression. Both decoders hand out small pieces and stop when nobody takes them. */

export type Compression = 'none' | 'gzip' | 'zstd'

const PIECE = 256 * 1024
/** zstd's own default limit for a reader: a window of 128 MiB. */
const ZSTD_WINDOW_LOG = 27

/** What the first bytes of a stream say. */
export function detectCompression(first: Uint8Array): Compression {
  if (first[0] === 0x1f && first[1] === 0x8b) return 'gzip'
  if (first[0] === 0x28 && first[1] === 0xb5 && first[2] === 0x2f && first[3] === 0xfd) return 'zstd'
  return 'none'
}

/**
 * Unpacks `stored`, `size` bytes in all. Several gzip members or zstd frames, one after another, are one stream.
 * @throws LAYER_COMPRESSION, LAYER_TRAILING
 */
export function decompress(
  stored: AsyncIterable<Uint8Array>,
  compression: Compression,
  size: number,
): AsyncIterable<Uint8Array> {
  if (compression === 'gzip') return gunzip(stored, size)
  return compression === 'zstd' ? unzstd(stored) : stored
}

async function* gunzip(stored: AsyncIterable<Uint8Array>, size: number): AsyncGenerator<Uint8Array> {
  const unpack = createGunzip({ chunkSize: PIECE })
  const feeding = feed(stored, unpack)
  try {
    for await (const piece of unpack) yield piece as Uint8Array
  } catch (cause) {
    if (systemCode(cause)?.startsWith('Z_') !== true) throw cause
    const sentence = cause instanceof Error ? cause.message : String(cause)
    throw ociErrors.LAYER_COMPRESSION(`a gzip layer cannot be unpacked: ${sentence}`, { cause })
  } finally {
    unpack.destroy()
    // `stored` must be at rest when the caller goes on with it.
    await feeding
  }
  // zlib stops at the first byte that starts no further member and says nothing.
  if (unpack.bytesWritten !== size)
    throw ociErrors.LAYER_TRAILING(`${size - unpack.bytesWritten} bytes follow the gzip stream of a layer`)
}

/** Never fails: what goes wrong with `stored` arrives through `unpack`. */
async function feed(stored: AsyncIterable<Uint8Array>, unpack: Gunzip): Promise<void> {
  let wake = (): void => {}
  unpack.on('drain', () => wake())
  unpack.on('close', () => wake())
  try {
    for await (const piece of stored) {
      if (unpack.destroyed) return
      if (unpack.write(piece)) continue
      await new Promise<void>((resolve) => {
        wake = resolve
        if (unpack.destroyed) resolve()
      })
    }
    unpack.end()
  } catch (error) {
    unpack.destroy(error instanceof Error ? error : new Error(String(error)))
  }
}

async function* unzstd(stored: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  // Not the package's stream class: that one unpacks all of an input piece before anyone can stop it.
  const context = new zstd.DCtx()
  context.setParameter(zstd.DParameter.windowLogMax, ZSTD_WINDOW_LOG)
  let inFrame = true
  for await (const piece of stored) {
    let rest = piece
    for (;;) {
      const out = Buffer.allocUnsafeSlow(PIECE)
      const [hint, produced, consumed] = step(context, out, rest)
      // Asked at a frame's exact end, with nothing left, the library hints at the head of a next one.
      if (produced > 0 || consumed > 0) inFrame = hint !== 0
      rest = rest.subarray(consumed)
      if (produced > 0) yield out.subarray(0, produced)
      if (rest.length === 0 && produced < out.length) break
    }
  }
  if (inFrame) throw ociErrors.LAYER_COMPRESSION('a zstd layer ends inside a frame')
}

function step(context: zstd.DCtx, out: Uint8Array, input: Uint8Array): readonly [number, number, number] {
  try {
    return context.decompressStream(out, input)
  } catch (cause) {
    const sentence = cause instanceof Error ? cause.message : String(cause)
    throw ociErrors.LAYER_COMPRESSION(`a zstd layer cannot be unpacked: ${sentence}`, { cause })
  }
}
