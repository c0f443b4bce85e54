import { type FileHandle, open, rm } from 'node:fs/promises'
import type { Sha256 } from '../base/bytes.ts'
import { systemReason } from '../base/errors.ts'
import { readExactly } from '../base/source.ts'
import { cutChunks, encodeIndex } from './chunks.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { fileSource } from './file-source.ts'
import { BLOCK, createTreeHasher } from './tree.ts'
import type { Chunk, ChunkIndex } from './types.ts'
import { compress } from './zstd.ts'

/** From an image file to its chunk index and its root, in one pass. */

/** Fast enough for a boot image on the publisher's main thread, and near the best ratio for what is in one. */
const LEVEL = 9

export interface PackOptions {
  /** Ends of the image's own blocks, for cuts that survive small changes; see `cutChunks`. */
  readonly boundaries?: Iterable<number>
  /** Compress each chunk where that saves a sixteenth or more. For images that are not compressed inside. */
  readonly compress: boolean
  /** Where compressed data goes; `PATH.data` unless told. Written only when some chunk is compressed. */
  readonly dataPath?: string
  readonly signal?: AbortSignal
}

export interface PackedImage {
  readonly index: ChunkIndex
  readonly indexBytes: Uint8Array
  readonly root: Sha256
  /** Bytes of the image. */
  readonly length: number
  /** The file that holds the stored chunks back to back: the image itself when all are raw. */
  readonly dataPath: string
}

/**
 * Cuts, digests and, where asked, compresses an image. Memory: the index, and one chunk.
 * @throws IMAGE_LENGTH, IMAGE_BOUNDARIES, SOURCE_OPEN, SOURCE_READ, BUNDLE_WRITE
 */
export async function packImage(path: string, options: PackOptions): Promise<PackedImage> {
  const dataPath = options.dataPath ?? `${path}.data`
  const source = await fileSource(path)
  let data: FileHandle | undefined
  try {
    const length = source.size
    if (length === 0 || length % BLOCK !== 0)
      throw bundleErrors.IMAGE_LENGTH(`${path} has ${length} bytes, wanted a multiple of ${BLOCK}, at least one`)
    if (options.compress) data = await open(dataPath, 'w')
    const tree = createTreeHasher({ onPage: () => undefined })
    const chunks: Chunk[] = []
    let offset = 0
    let storedOffset = 0
    for (const end of cutChunks(length, options.boundaries)) {
      options.signal?.throwIfAborted()
      const content = await readExactly(source, offset, end - offset)
      tree.update(content)
      const stored = options.compress ? smaller(content) : content
      await data?.writeFile(stored)
      chunks.push(describe(content, stored, offset, storedOffset))
      offset = end
      storedOffset += stored.length
    }
    const index = { imageLength: length, chunks }
    const raw = chunks.every((chunk) => chunk.encoding === 'raw')
    if (raw && data !== undefined) await rm(dataPath)
    const { root } = tree.finish()
    return { index, indexBytes: encodeIndex(index), root, length, dataPath: raw ? path : dataPath }
  } catch (cause) {
    if (!(cause instanceof Error && 'syscall' in cause)) throw cause
    throw bundleErrors.BUNDLE_WRITE(`cannot write ${dataPath}: ${systemReason(cause)}`, { cause })
  } finally {
    await data?.close()
    await source.close()
  }
}

function smaller(content: Uint8Array): Uint8Array {
  const packed = compress(content, LEVEL)
  return packed.length <= content.length - content.length / 16 ? packed : content
}

function describe(content: Uint8Array, stored: Uint8Array, offset: number, storedOffset: number): Chunk {
  const digest = sha256(content)
  const raw = stored === content
  return {
    digest,
    offset,
    length: content.length,
    encoding: raw ? 'raw' : 'zstd',
    storedOffset,
    storedLength: stored.length,
    storedDigest: raw ? digest : sha256(stored),
  }
}
