import type { ByteRange } from '../../base/source.ts'
import { PIECE_BYTES, SEGMENT_PIECES } from '../../broker/topics.ts'

/** Segments of a bundle that the device listens to at once: 2 MiB of flow control. */
export const WINDOW_SEGMENTS = 8

/** Numbers of the pieces that ascending ranges touch, each once, ascending. Pure. */
export function* piecesOf(ranges: readonly ByteRange[]): Generator<number> {
  let next = 0
  for (const { offset, length } of ranges) {
    if (length === 0) continue
    const last = Math.floor((offset + length - 1) / PIECE_BYTES)
    for (let index = Math.max(next, Math.floor(offset / PIECE_BYTES)); index <= last; index++) yield index
    next = Math.max(next, last + 1)
  }
}

export const segmentOf = (index: number): number => Math.floor(index / SEGMENT_PIECES)

/** The pieces that come next on the way through a list of ranges: as many as lie in so many segments. */
export class Window {
  readonly #rest: Iterator<number>
  #peeked: IteratorResult<number>
  #ahead: number[] = []

  constructor(ranges: readonly ByteRange[]) {
    this.#rest = piecesOf(ranges)[Symbol.iterator]()
    this.#peeked = this.#rest.next()
  }

  /** Moves on until `index` is first. @returns the pieces of the window, ascending */
  moveTo(index: number): readonly number[] {
    const behind = this.#ahead.findIndex((one) => one >= index)
    this.#ahead = behind === -1 ? [] : this.#ahead.slice(behind)
    const segments = new Set(this.#ahead.map(segmentOf))
    while (this.#peeked.done !== true) {
      const next = this.#peeked.value
      segments.add(segmentOf(next))
      if (segments.size > WINDOW_SEGMENTS) break
      if (next >= index) this.#ahead.push(next)
      this.#peeked = this.#rest.next()
    }
    return this.#ahead
  }
}
