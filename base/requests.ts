import type { ByteRange } from './source.ts'

/** Which requests fetch a list of ranges. Pure. */

export interface PlannedRequest extends ByteRange {
  /** The ranges inside, ascending; what lies between them is fetched and dropped. */
  readonly ranges: readonly ByteRange[]
}

/**
 * Merges neighbouring ranges while the bytes between them cost less than a request of their own.
 * @param ranges ascending, without overlap
 * @param requestCost what a request costs, in bytes: its own headers and its answer's, and the time it takes
 */
export function planRequests(ranges: readonly ByteRange[], requestCost: number): PlannedRequest[] {
  const requests: { offset: number; length: number; ranges: ByteRange[] }[] = []
  for (const range of ranges) {
    if (range.length === 0) continue
    const last = requests.at(-1)
    const end = last === undefined ? 0 : last.offset + last.length
    if (last !== undefined && range.offset - end <= requestCost) {
      last.length = range.offset + range.length - last.offset
      last.ranges.push(range)
    } else requests.push({ ...range, ranges: [range] })
  }
  return requests
}

/** Drops what lies between the ranges of a request. @param bytes those of the request, in order */
export async function* onlyRanges(
  request: PlannedRequest,
  bytes: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  let at = request.offset
  let next = 0
  for await (const piece of bytes) {
    const end = at + piece.length
    for (let range = request.ranges[next]; range !== undefined; range = request.ranges[next]) {
      const last = range.offset + range.length
      const from = Math.max(range.offset, at)
      const to = Math.min(last, end)
      if (to > from) yield piece.subarray(from - at, to - at)
      if (last > end) break
      next++
    }
    at = end
  }
}
