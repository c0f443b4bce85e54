import { type ByteSource, filtered } from '../../base/source.ts'
import { doorErrors } from './errors.ts'

/** Holds a door to its word: exactly the bytes asked for, or a typed error. No door's own defect becomes ours. */
export function exact(source: ByteSource): ByteSource {
  const count = async function* (pieces: AsyncIterable<Uint8Array>, wanted: number) {
    let left = wanted
    for await (const piece of pieces) {
      left -= piece.length
      if (left < 0)
        throw doorErrors.TRANSPORT_WRONG_ANSWER(`${source.name} gave more than the ${wanted} bytes asked for`)
      yield piece
    }
    if (left > 0) throw doorErrors.TRANSPORT_LOST(`${source.name} ended ${left} bytes short of the ${wanted} asked for`)
  }
  return filtered(source, (start, options, wanted) => count(start(options), wanted))
}
