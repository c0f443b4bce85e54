import { isBistableError } from '../../base/errors.ts'
import { type Unpack, unpacker } from '../squashfs/codec.ts'
import { type Extents, listExtents, plainExtents } from '../squashfs/extents.ts'
import { openSquashfs, type Squashfs } from '../squashfs/image.ts'
import type { BlockReader } from '../squashfs/reader.ts'
import { deltaErrors } from './errors.ts'

/** An image that a patch starts from, as a row of extents whose content can be asked for. */
export interface OldImage {
  readonly extents: Extents
  /** To walk it by names. Undefined: not kept, or no SquashFS image that can be read: then all of it is raw. */
  readonly squashfs: Squashfs | undefined
  /** What an extent unpacks to, with zeros behind up to its stride: a view that must not be changed. */
  content(index: number): Promise<Uint8Array>
  /** What an extent unpacks to, as long as it is. */
  exact(index: number): Promise<Uint8Array>
  /** An extent as it stands in the image. */
  stored(index: number): Promise<Uint8Array>
  /** How many extents were unpacked so far: what a patch costs. */
  readonly unpacked: number
}

/** Bytes of content kept: a window of no more is unpacked once, however a patch jumps about in it. */
export const KEPT_CONTENT = 16 * 1024 * 1024

/**
 * @param size bytes of the image
 * @param options.names keeps what `squashfs` needs, about 20 MiB
 */
export async function openOldImage(
  reader: BlockReader,
  size: number,
  options: { readonly names?: boolean } = {},
): Promise<OldImage> {
  const { extents, squashfs } = await extentsOf(reader, size)
  const unpack: Unpack = unpacker(squashfs?.superblock.compression ?? 'zstd')
  const cache = new Map<number, Uint8Array>()
  let held = 0
  let unpacked = 0

  async function load(index: number): Promise<Uint8Array> {
    const { at, length, kind } = extents.get(index)
    const stored = await reader.read(at, length)
    if (kind === 'raw') return stored
    return unpack(kind === 'meta' ? stored.subarray(2) : stored, extents.stride(index), at)
  }

  async function padded(index: number): Promise<Uint8Array> {
    const content = await load(index)
    const stride = extents.stride(index)
    if (content.length === stride) return content
    const whole = Buffer.alloc(stride)
    whole.set(content)
    return whole
  }

  return {
    extents,
    squashfs: options.names === true ? squashfs : undefined,
    exact: load,
    stored: (index) => {
      const { at, length } = extents.get(index)
      return reader.read(at, length)
    },
    async content(index) {
      const known = cache.get(index)
      if (known !== undefined) {
        cache.delete(index)
        cache.set(index, known)
        return known
      }
      unpacked++
      const content = await padded(index)
      cache.set(index, content)
      held += content.length
      for (const [oldest, bytes] of cache) {
        if (held <= KEPT_CONTENT || oldest === index) break
        cache.delete(oldest)
        held -= bytes.length
      }
      return content
    },
    get unpacked() {
      return unpacked
    },
  }
}

async function extentsOf(
  reader: BlockReader,
  size: number,
): Promise<{ readonly extents: Extents; readonly squashfs: Squashfs | undefined }> {
  try {
    const squashfs = await openSquashfs(reader, size)
    return { extents: await listExtents(squashfs, size), squashfs }
  } catch (error) {
    if (!isBistableError(error) || !error.code.startsWith('SQUASHFS_')) throw error
    return { extents: plainExtents(size), squashfs: undefined }
  }
}

/** Several rows of neighbouring extents, one after the other, as one stretch of bytes. */
export class OldWindow {
  readonly #image: OldImage
  readonly #indexes: Uint32Array
  readonly #starts: Float64Array
  readonly #mayUnpack: number
  readonly length: number
  #last = 0

  /** @throws DELTA_INVALID when the rows are not in the image */
  constructor(image: OldImage, rows: readonly { readonly first: number; readonly count: number }[]) {
    this.#image = image
    const count = rows.reduce((sum, row) => sum + row.count, 0)
    this.#indexes = new Uint32Array(count)
    this.#starts = new Float64Array(count)
    let at = 0
    let n = 0
    for (const row of rows) {
      if (row.first + row.count > image.extents.count)
        throw deltaErrors.DELTA_INVALID(
          `patch: wants the pieces ${row.first} to ${row.first + row.count} of an image of ${image.extents.count}`,
        )
      for (let index = row.first; index < row.first + row.count; index++, n++) {
        this.#indexes[n] = index
        this.#starts[n] = at
        at += image.extents.stride(index)
      }
    }
    this.length = at
    // An honest patch goes through its window about in order.
    this.#mayUnpack = image.unpacked + 16 * count + 1024
  }

  /**
   * Bytes from `at` on, up to the end of their extent; at least one.
   * @throws DELTA_INVALID outside of the window, and when a patch makes too much work
   */
  async from(at: number): Promise<Uint8Array> {
    if (at < 0 || at >= this.length) throw deltaErrors.DELTA_INVALID(`patch: byte ${at} of a window of ${this.length}`)
    const n = this.#find(at)
    const content = await this.#image.content(this.#indexes[n] ?? 0)
    if (this.#image.unpacked > this.#mayUnpack)
      throw deltaErrors.DELTA_INVALID('patch: it jumps about in the old image more than it may')
    return content.subarray(at - (this.#starts[n] ?? 0))
  }

  #find(at: number): number {
    const starts = this.#starts
    const last = this.#last
    if ((starts[last] ?? 0) <= at && at < (starts[last + 1] ?? this.length)) return last
    let low = 0
    let high = starts.length - 1
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      if ((starts[middle] ?? 0) <= at) low = middle
      else high = middle - 1
    }
    this.#last = low
    return low
  }
}
