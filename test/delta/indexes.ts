import type { Sha256 } from '../../base/bytes.ts'
import { encodeIndex } from '../../bundle/chunks.ts'
import { sha256 } from '../../bundle/digest.ts'
import type { Chunk } from '../../bundle/types.ts'

/** Chunk indexes of images that nobody has, and what happens to them from one release to the next. */

export type Entry = Pick<Chunk, 'digest' | 'length' | 'encoding' | 'storedLength' | 'storedDigest'>

const digest = (text: string): Sha256 => sha256(Buffer.from(text))

/** @param raw part of the chunks that are stored as they are */
export function randomEntry(random: () => number, raw = 0.7): Entry {
  const below = (n: number): number => Math.floor(random() * n)
  const name = digest(String(random()))
  if (random() < raw) {
    const length = 4096 * (1 + below(16))
    return { digest: name, length, encoding: 'raw', storedLength: length, storedDigest: name }
  }
  return { digest: name, length: 8192, encoding: 'zstd', storedLength: 1 + below(8000), storedDigest: digest(name) }
}

/** Some entries gone, some new, and now and then the whole turned about. */
export function changedEntries(
  random: () => number,
  old: readonly Entry[],
  changes: number,
  fresh: () => Entry,
): Entry[] {
  const below = (n: number): number => Math.floor(random() * n)
  const next = [...old]
  for (let n = 0; n < changes; n++)
    next.splice(below(next.length + 1), below(4), ...Array.from({ length: below(3) }, fresh))
  if (random() < 0.3) next.push(...next.splice(0, below(next.length)))
  return next.length === 0 ? [fresh()] : next
}

export function encodeEntries(entries: readonly Entry[]): Uint8Array {
  let [offset, storedOffset] = [0, 0]
  const chunks = entries.map((one) => {
    const chunk = { ...one, offset, storedOffset }
    offset += one.length
    storedOffset += one.storedLength
    return chunk
  })
  return encodeIndex({ imageLength: offset, chunks })
}
