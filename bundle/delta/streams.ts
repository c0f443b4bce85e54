import { isBistableError } from '../../base/errors.ts'
import { compress, decompressExactly } from '../zstd.ts'
import { invalid, MAX_UNIT_UNPACKED } from './head.ts'
import { VarintReader, VarintWriter } from './varint.ts'

/** The streams of a unit. Like things stand together, so that they compress. */
export const STREAMS = ['window', 'chunks', 'pieces', 'copies', 'inserts', 'seeks', 'diff', 'extra'] as const
export type StreamName = (typeof STREAMS)[number]
export type Streams = Readonly<Record<StreamName, Uint8Array>>

/** Above this the publisher's memory grows more than the patch shrinks. */
const LEVEL = 19

/** The stored bytes of a unit: for each stream its length and stored length, then the streams; zstd where it helps. */
export function packStreams(streams: Streams): Uint8Array {
  const head = new VarintWriter()
  const parts: Uint8Array[] = []
  for (const name of STREAMS) {
    const bytes = streams[name]
    const packed = bytes.length === 0 ? bytes : compress(bytes, LEVEL)
    const stored = packed.length < bytes.length ? packed : bytes
    head.put(bytes.length)
    head.put(stored.length)
    parts.push(stored)
  }
  const sizes = head.finish()
  const length = new VarintWriter()
  length.put(sizes.length)
  return Buffer.concat([length.finish(), sizes, ...parts])
}

/** @throws DELTA_INVALID */
export function unpackStreams(stored: Uint8Array): Streams {
  const first = new VarintReader(stored.subarray(0, 2), 'sizes')
  const count = first.take(16383)
  let at = count < 128 ? 1 : 2
  const sizes = new VarintReader(stored.subarray(at, at + count), 'sizes')
  at += count
  let total = 0
  const out: Partial<Record<StreamName, Uint8Array>> = {}
  for (const name of STREAMS) {
    const length = sizes.take(MAX_UNIT_UNPACKED)
    const packed = sizes.take(length)
    total += length
    if (total > MAX_UNIT_UNPACKED) throw invalid(`a unit unpacks to more than ${MAX_UNIT_UNPACKED} bytes`)
    const bytes = stored.subarray(at, at + packed)
    if (bytes.length < packed) throw invalid(`a unit ends inside its ${name}`)
    at += packed
    out[name] = packed === length ? bytes : unpack(name, bytes, length)
  }
  if (at !== stored.length || !sizes.ended) throw invalid('bytes stand behind the streams of a unit')
  return out as Streams
}

function unpack(name: StreamName, bytes: Uint8Array, length: number): Uint8Array {
  try {
    return decompressExactly(bytes, length)
  } catch (cause) {
    if (!isBistableError(cause)) throw cause
    throw invalid(`the ${name} of a unit: ${cause.message}`)
  }
}
