import type { OldImage } from '../../bundle/delta/old.ts'
import { sha256 } from '../../bundle/digest.ts'
import { Similar } from './similar.ts'

/** Where the old content is that a new piece may be made of: the same bytes, the same path, or whatever resembles it. */

/** Pieces that resemble a new one and are offered for it. */
const MOST_SIMILAR = 4

export class OldSources {
  readonly image: OldImage
  /** Number of the first extent behind the data: the tables. */
  readonly tables: number
  readonly #similar: Similar
  readonly #stored = new Map<string, number>()
  readonly #paths = new Map<string, readonly number[]>()

  private constructor(image: OldImage, tables: number, similar: Similar) {
    this.image = image
    this.tables = tables
    this.#similar = similar
  }

  /** Reads all of the old image once. */
  static async open(image: OldImage, signal?: AbortSignal): Promise<OldSources> {
    const { extents, squashfs } = image
    const tables = tablesOf(image)
    let total = 0
    for (let index = 0; index < tables; index++) total += extents.stride(index)
    const sources = new OldSources(image, tables, new Similar(Math.max(1, total)))
    for (let index = 0; index < extents.count; index++) {
      signal?.throwIfAborted()
      const { kind, length } = extents.get(index)
      if (kind !== 'raw' || length > 1024) sources.#stored.set(sha256(await image.stored(index)), index)
      if (index < tables) sources.#similar.add(await image.exact(index), index)
    }
    if (squashfs !== undefined) for await (const [path, indexes] of pathsOf(image)) sources.#paths.set(path, indexes)
    return sources
  }

  /** The extent with exactly these stored bytes. */
  same(stored: Uint8Array): number | undefined {
    return this.#stored.get(sha256(stored))
  }

  /** Extents that a piece of data may be made of, best first. */
  candidates(content: Uint8Array, places: readonly Place[]): readonly number[] {
    const found = new Set<number>()
    for (const index of this.#similar.find(content, MOST_SIMILAR)) {
      found.add(index)
      // What moved a little lies partly in the neighbour.
      if (index > 0) found.add(index - 1)
      if (index + 1 < this.tables) found.add(index + 1)
    }
    for (const { path, block } of places) {
      const blocks = this.#paths.get(path)
      if (blocks === undefined) continue
      // Its tail may be a fragment now, or have been one: the last block stands for both.
      for (const near of [block, Math.min(block, blocks.length - 1), blocks.length - 1]) {
        const index = blocks[near]
        if (index !== undefined) found.add(index)
      }
    }
    return [...found]
  }
}

/** A block of a file: which part of an extent's content it is does not matter. */
export interface Place {
  readonly path: string
  readonly block: number
}

export function tablesOf({ extents, squashfs }: OldImage): number {
  return squashfs === undefined ? extents.count : extents.find(squashfs.superblock.inodeTable.start)
}

/** For each file the extents that hold its blocks, and its fragment at the end. */
async function* pathsOf({ extents, squashfs }: OldImage): AsyncGenerator<readonly [string, readonly number[]]> {
  if (squashfs === undefined) return
  for await (const entry of squashfs.walk()) {
    if (entry.type !== 'file' || entry.size === 0) continue
    const indexes: number[] = []
    for await (const { at } of squashfs.storedOf(entry)) indexes.push(extents.find(at))
    yield [entry.path, indexes]
  }
}

/** For each extent the files in it, as far as they have names. */
export async function placesOf(image: OldImage): Promise<ReadonlyMap<number, readonly Place[]>> {
  const places = new Map<number, Place[]>()
  for await (const [path, indexes] of pathsOf(image))
    for (const [block, index] of indexes.entries()) {
      const known = places.get(index)
      if (known === undefined) places.set(index, [{ path, block }])
      else known.push({ path, block })
    }
  return places
}
