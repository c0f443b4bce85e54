import binding from 'zstd-napi/binding.js'
import { bundleErrors } from './errors.ts'

/**
 * Zstandard behind three functions. All of it runs on the calling thread; pieces are kept small (chunks of at most
 * 1 MiB). The library's one-shot call allocates what a frame header claims, so it is never handed an output of its
 * own choice: every output is bounded here by the caller.
 */

const PIECE = 128 * 1024

/** Of the library inside: other versions may make other bytes. */
export const zstdVersion: string = binding.versionString()

/** One frame with its content size in the header, no checksum. Same bytes for the same input, level and library. */
export function compress(bytes: Uint8Array, level: number): Uint8Array {
  const out = Buffer.allocUnsafe(binding.compressBound(bytes.length))
  return Uint8Array.from(out.subarray(0, new binding.CCtx().compress(out, bytes, level)))
}

/** From the levels in use, the shortest distance at which matches are found; and what longer bytes are given. Powers of two. */
const USUAL_WINDOW_LOG = 23
const MAX_WINDOW_LOG = 27

/**
 * One frame that says `bytes` by what `old` has in common with them; `decompressAgainst` with the same old bytes gives
 * them back.
 * @param level 17 and up, whose windows are large enough
 */
export function compressAgainst(bytes: Uint8Array, old: Uint8Array, level: number): Uint8Array {
  const out = Buffer.allocUnsafe(binding.compressBound(bytes.length))
  const context = new binding.CCtx()
  const reach = Math.ceil(Math.log2(bytes.length + old.length + 1))
  // The one call fits its tables to the bytes; the other way takes some 100 MiB for any.
  if (reach <= USUAL_WINDOW_LOG)
    return Uint8Array.from(out.subarray(0, context.compressUsingDict(out, bytes, old, level)))
  const { compressionLevel, windowLog } = binding.CParameter
  context.setParameter(compressionLevel, level)
  context.setParameter(windowLog, Math.min(reach, MAX_WINDOW_LOG))
  context.loadDictionary(old)
  return Uint8Array.from(out.subarray(0, context.compress2(out, bytes)))
}

/** As `decompressExactly`, of a frame by `compressAgainst`. With other old bytes other bytes come out, or none. */
export function decompressAgainst(bytes: Uint8Array, old: Uint8Array, expectedLength: number): Uint8Array {
  return unpackExactly(bytes, expectedLength, (out) => new binding.DCtx().decompressUsingDict(out, bytes, old))
}

/** For whole frames: each call begins anew, whatever the one before met. Its tables are larger than most frames. */
let whole: InstanceType<typeof binding.DCtx> | undefined

/** Unpacks exactly one frame into exactly `expectedLength` bytes; memory is bounded by that. */
export function decompressExactly(bytes: Uint8Array, expectedLength: number): Uint8Array {
  whole ??= new binding.DCtx()
  const context = whole
  return unpackExactly(bytes, expectedLength, (out) => context.decompress(out, bytes))
}

function unpackExactly(bytes: Uint8Array, expectedLength: number, unpack: (out: Uint8Array) => number): Uint8Array {
  const frame = guard(() => binding.findFrameCompressedSize(bytes))
  if (frame < bytes.length)
    throw bundleErrors.ZSTD_TRAILING(`${bytes.length - frame} bytes stand behind a frame of ${frame} bytes`)
  const announced = guard(() => binding.getFrameContentSize(bytes))
  if (announced !== null && announced !== expectedLength)
    throw bundleErrors.ZSTD_LENGTH(`a frame says it unpacks to ${announced} bytes, ${expectedLength} were announced`)
  const out = Buffer.allocUnsafe(expectedLength)
  const produced = guard(() => unpack(out))
  if (produced !== expectedLength)
    throw bundleErrors.ZSTD_LENGTH(`a frame unpacks to ${produced} bytes, ${expectedLength} were announced`)
  return out
}

/**
 * Unpacks one frame piece by piece. Fails after `atMost` bytes of output, on a window over 2^windowLogMax bytes, on a
 * frame cut short and on anything behind it.
 */
export async function* decompressStream(
  source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  limits: { readonly atMost: number; readonly windowLogMax: number },
): AsyncGenerator<Uint8Array> {
  const context = new binding.DCtx()
  context.setParameter(binding.DParameter.windowLogMax, limits.windowLogMax)
  let total = 0
  let ended = false
  for await (const piece of source) {
    let rest = piece
    let flushing = false
    while (rest.length > 0 || flushing) {
      if (ended) throw bundleErrors.ZSTD_TRAILING('bytes stand behind the end of a compressed frame')
      const out = Buffer.allocUnsafe(PIECE)
      const input = rest
      const [hint, produced, consumed] = guard(() => context.decompressStream(out, input))
      rest = rest.subarray(consumed)
      total += produced
      if (total > limits.atMost)
        throw bundleErrors.ZSTD_LENGTH(`a frame unpacks to more than the ${limits.atMost} bytes announced`)
      if (produced > 0) yield out.subarray(0, produced)
      ended = hint === 0
      flushing = !ended && produced === out.length
    }
  }
  if (!ended) throw bundleErrors.ZSTD_INVALID(`a compressed frame is cut short after ${total} bytes of output`)
}

function guard<T>(action: () => T): T {
  try {
    return action()
  } catch (cause) {
    const said = cause instanceof Error ? cause.message : String(cause)
    throw bundleErrors.ZSTD_INVALID(`zstd refuses a frame: ${said}`, { cause })
  }
}
