import * as v from 'valibot'
import { fromHex, isSha256, type Sha256 } from '../base/bytes.ts'
import { isBistableError } from '../base/errors.ts'
import { parseStrictJson } from '../base/strict-json.ts'
import { count, digest, positive } from '../bundle/fields.ts'
import { isSafePath } from '../bundle/freshness.ts'

/**
 * What devices and publisher send each other on a broker. Nothing here is trusted: whoever can write to a topic can
 * write this. Reading returns undefined for anything else than a well-formed message, which is then ignored: junk must
 * cost nothing but its own bytes.
 */

/** Of every message but a piece; larger ones are not looked at. */
export const MAX_MESSAGE_BYTES = 16 * 1024
/** Ranges in one request for pieces. */
export const MAX_RANGES = 64
/** Pieces that one device may wait for. */
export const MAX_ASKED = 128

const file = v.pipe(v.string(), v.check(isSafePath))
/** What publishers write into marks is their own affair. */
const mark = v.pipe(v.string(), v.maxLength(40))
const range = v.strictTuple([count, positive])

const askSchema = v.union([
  v.strictObject({ v: v.literal(1), file }),
  v.strictObject({
    v: v.literal(1),
    bundle: digest,
    /** All pieces that the device waits for now: [first, how many], in order, not touching. Empty: none any more. */
    pieces: v.pipe(v.array(range), v.maxLength(MAX_RANGES)),
    /** True when they were asked for before and did not come: a mark is wanted. */
    again: v.exactOptional(v.literal(true)),
    /** The last mark that the device heard. */
    mark: v.exactOptional(mark),
  }),
])
/** device -> publisher: "is there such a file?", or "these pieces, please". */
export type Ask = v.InferOutput<typeof askSchema>

const answerSchema = v.union([
  v.strictObject({ v: v.literal(1), file, size: positive, digest }),
  v.strictObject({ v: v.literal(1), file, missing: v.literal(true) }),
  v.strictObject({ v: v.literal(1), bundle: digest, gone: v.literal(true) }),
  v.strictObject({ v: v.literal(1), bundle: digest, mark }),
])
/**
 * publisher -> device: what a file is, that there is none, that no file with this digest is here (any more), or a mark:
 * what was sent before it and has not arrived when it does is lost, because a broker keeps the order.
 */
export type Answer = v.InferOutput<typeof answerSchema>

const text = (most: number) => v.pipe(v.string(), v.maxLength(most))

const linkSchema = v.strictObject({ v: v.literal(1), online: v.boolean() })
/** Retained: true while the device is connected; false by its last will. */
export type LinkReport = v.InferOutput<typeof linkSchema>

const stateSchema = v.object({
  v: v.literal(1),
  product: text(64),
  /** The agent's state: idle, downloading, verified, armed, trying, committed, fallen-back. */
  state: text(32),
  running: v.object({ slot: v.picklist(['a', 'b']), release: text(40), version: v.exactOptional(text(128)) }),
  /** The release that the state is about. */
  job: v.nullable(v.object({ release: text(40), digest })),
  /** What lies over /usr beside the release, or should. */
  addons: v.exactOptional(v.pipe(v.array(v.object({ name: text(64), state: text(16) })), v.maxLength(32))),
  /** How many paths differed from the release when it was counted last, and how many of them are the device's own. */
  drift: v.exactOptional(v.object({ at: text(40), count, owned: count })),
  /** The newest outcome; `code` is one of docs/errors.md, and absent when all went well. */
  outcome: v.nullable(
    v.object({
      at: text(40),
      what: text(32),
      ok: v.boolean(),
      code: v.exactOptional(text(64)),
      message: text(600),
    }),
  ),
})
/** Retained: what the device is and what became of the last thing it did. */
export type StateReport = v.InferOutput<typeof stateSchema>

const progressSchema = v.object({
  v: v.literal(1),
  phase: text(16),
  image: v.nullable(text(16)),
  done: count,
  total: count,
  /** Bytes that came from outside. */
  fetched: count,
})
export type ProgressReport = v.InferOutput<typeof progressSchema>

export const readAsk = (bytes: Uint8Array): Ask | undefined => read(askSchema, bytes)
export const readAnswer = (bytes: Uint8Array): Answer | undefined => read(answerSchema, bytes)
export const readLink = (bytes: Uint8Array): LinkReport | undefined => read(linkSchema, bytes)
export const readState = (bytes: Uint8Array): StateReport | undefined => read(stateSchema, bytes)
export const readProgress = (bytes: Uint8Array): ProgressReport | undefined => read(progressSchema, bytes)

/** The bytes of any message but a piece. */
export function encodeMessage(message: Ask | Answer | LinkReport | StateReport | ProgressReport): Buffer {
  return Buffer.from(JSON.stringify(message))
}

function read<S extends v.GenericSchema>(schema: S, bytes: Uint8Array): v.InferOutput<S> | undefined {
  if (bytes.length > MAX_MESSAGE_BYTES) return undefined
  try {
    const parsed = v.safeParse(schema, parseStrictJson(bytes, { maxBytes: MAX_MESSAGE_BYTES }))
    return parsed.success ? parsed.output : undefined
  } catch (error) {
    if (!isBistableError(error)) throw error
    return undefined
  }
}

/** Numbers as [first, how many] ranges, for an ask. `numbers` ascend. Cut off after `MAX_RANGES`. Pure. */
export function toRanges(numbers: Iterable<number>): [number, number][] {
  const ranges: [number, number][] = []
  for (const n of numbers) {
    const last = ranges.at(-1)
    if (last !== undefined && last[0] + last[1] === n) last[1]++
    else if (ranges.length === MAX_RANGES) break
    else ranges.push([n, 1])
  }
  return ranges
}

/** The pieces of an ask, at most `MAX_ASKED`, each below `pieces`. Pure. */
export function fromRanges(ranges: readonly (readonly [number, number])[], pieces: number): number[] {
  const numbers: number[] = []
  for (const [first, many] of ranges)
    for (let n = first; n < first + many && n < pieces && numbers.length < MAX_ASKED; n++) numbers.push(n)
  return numbers
}

const MAGIC = Buffer.from('bsp1')
const PIECE_HEAD = 4 + 32 + 8

export interface Piece {
  /** SHA-256 of the whole file. */
  readonly bundle: Sha256
  /** Byte of the file at which the data starts. */
  readonly offset: number
  readonly data: Uint8Array
}

/** "bsp1", 32 bytes of the file's SHA-256, the offset as 8 bytes big-endian, the data to the end of the message. */
export function encodePiece({ bundle, offset, data }: Piece): Buffer {
  const bytes = Buffer.allocUnsafe(PIECE_HEAD + data.length)
  MAGIC.copy(bytes)
  bytes.set(fromHex(bundle), 4)
  bytes.writeBigUInt64BE(BigInt(offset), 36)
  bytes.set(data, PIECE_HEAD)
  return bytes
}

/** The data is a view of `bytes`. @returns undefined when it is no piece */
export function readPiece(bytes: Uint8Array): Piece | undefined {
  if (bytes.length <= PIECE_HEAD) return undefined
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (!view.subarray(0, 4).equals(MAGIC)) return undefined
  const bundle = view.toString('hex', 4, 36)
  const offset = Number(view.readBigUInt64BE(36))
  if (!isSha256(bundle) || !Number.isSafeInteger(offset)) return undefined
  return { bundle, offset, data: bytes.subarray(PIECE_HEAD) }
}
