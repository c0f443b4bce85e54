import { createHash } from 'node:crypto'
import * as v from 'valibot'
import { isSha256, KiB, type Sha256 } from '../../base/bytes.ts'
import { compareNumbers } from '../../bundle/fields.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { deviceErrors } from '../errors.ts'

/**
 * The state record: everything the agent must remember across boots, small, in one piece.
 *
 * File: one line `bistable-record 1 GENERATION SHA256`, then the body as JSON and a newline; the digest covers the
 * generation and the body. Two files are written in turn (`store.ts`).
 *
 * Unknown fields are dropped, an unknown state counts as idle: after a fall-back an older agent reads what a newer one
 * wrote, and must keep its floors and its block list.
 */

export const MAX_RECORD_BYTES = 256 * KiB
export const MAX_OUTCOMES = 100
export const MAX_BLOCKED = 64
/** Longest free text kept: reasons come from a boot partition and from checks, so they are bounded. */
export const MAX_TEXT = 400

const MAGIC = 'bistable-record 1'

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const text = v.pipe(v.string(), v.maxLength(MAX_TEXT))
const time = v.pipe(v.string(), v.isoTimestamp())
const sha256 = v.custom<Sha256>(isSha256, 'not a SHA-256')
const number = v.object({ epoch: count, counter: count })
const slot = v.picklist(['a', 'b'])

/** One attempt to bring a release onto the device, or to go back to one. */
const job = v.object({
  kind: v.picklist(['update', 'rollback']),
  slot,
  digest: sha256,
  number,
  version: text,
  /** Path or address, for people. */
  source: text,
  forced: v.boolean(),
  /** Healthy is not enough: a person commits. */
  hold: v.exactOptional(v.boolean()),
  started: time,
})

const failure = v.object({ code: text, message: text })

const state = v.variant('name', [
  v.object({ name: v.literal('idle') }),
  v.object({ name: v.literal('downloading'), job, since: time }),
  // `bootId` names the boot in which it was armed: while it is still that boot, nothing can have been tried.
  v.object({ name: v.literal('verified'), job, since: time, bootId: text }),
  v.object({ name: v.literal('armed'), job, since: time, bootId: text }),
  /**
   * `failed` is set before the trial is refused, so that a cut in between ends the same way. `begun`: when the agent first came
   * up in this boot of the trial, so that one that is started again and again does not begin its deadline anew for ever.
   */
  v.object({
    name: v.literal('trying'),
    job,
    since: time,
    failed: v.optional(failure),
    begun: v.exactOptional(v.object({ bootId: text, mono: count })),
  }),
  v.object({ name: v.literal('committed'), job, since: time }),
  v.object({ name: v.literal('fallen-back'), job, since: time, failed: failure }),
])

const slotFacts = v.object({
  digest: sha256,
  number,
  version: text,
  /** Was this content ever committed on this device. */
  committed: v.boolean(),
})

const outcome = v.object({
  at: time,
  /** check, install, commit, fall-back, rollback, boot, health or agent. */
  what: text,
  ok: v.boolean(),
  /** Stable error code, or undefined for a success. */
  code: v.optional(text),
  message: text,
  release: v.optional(number),
  digest: v.optional(sha256),
  /** Of an install: bytes that came through the door, and bytes of the whole bundle. */
  fetched: v.optional(count),
  size: v.optional(count),
})

const freshness = v.object({
  channel: text,
  number,
  digest: sha256,
  issued: time,
  expires: time,
  /** When it was verified, by this device's clock, and whether that clock was synchronised. */
  at: time,
  clock: v.picklist(['synchronised', 'newest-verified-time']),
})

/** The assignment with the highest sequence that was accepted. Kept when it has expired: the sequence still counts. */
const assigned = v.object({
  sequence: v.pipe(count, v.minValue(1)),
  /** SHA-256 of its payload. */
  digest: sha256,
  release: sha256,
  number,
  allowDowngrade: v.boolean(),
  notBefore: v.exactOptional(time),
  expires: v.nullable(time),
  bundle: v.exactOptional(v.object({ path: text, size: count })),
})

const body = v.object({
  state: v.fallback(state, { name: 'idle' }),
  /** Newest root version seen, and the digest of each stored root envelope `roots/N.json`. */
  trust: v.object({
    version: count,
    roots: v.pipe(v.array(v.object({ version: count, sha256 })), v.maxLength(1024)),
  }),
  installFloor: number,
  securityFloor: number,
  /** Newest issue time of any verified statement. Never goes back. */
  verifiedTime: v.optional(time),
  freshness: v.optional(freshness),
  assignment: v.optional(assigned),
  blocked: v.pipe(
    v.array(v.object({ digest: sha256, number: v.optional(number), reason: text, at: time })),
    v.maxLength(MAX_BLOCKED),
  ),
  slots: v.object({ a: v.optional(slotFacts), b: v.optional(slotFacts) }),
  outcomes: v.pipe(v.array(outcome), v.maxLength(MAX_OUTCOMES)),
})

export type Job = v.InferOutput<typeof job>
export type Failure = v.InferOutput<typeof failure>
export type State = v.InferOutput<typeof state>
export type SlotFacts = v.InferOutput<typeof slotFacts>
export type Outcome = v.InferOutput<typeof outcome>
export type FreshnessSeen = v.InferOutput<typeof freshness>
export type Assigned = v.InferOutput<typeof assigned>
export type RecordBody = v.InferOutput<typeof body>

export interface StateRecord {
  /** 1, 2, 3, …; the higher valid one counts. */
  readonly generation: number
  readonly body: RecordBody
}

export const EMPTY_BODY: RecordBody = {
  state: { name: 'idle' },
  trust: { version: 0, roots: [] },
  installFloor: { epoch: 0, counter: 0 },
  securityFloor: { epoch: 0, counter: 0 },
  blocked: [],
  slots: {},
  outcomes: [],
}

/** Cuts free text to what a record holds, and control bytes out of it: it is shown on terminals. */
export function clip(value: string): string {
  const clean = value.replace(/[\u0000-\u001f\u007f]+/g, ' ')
  // Array.from: never half of a surrogate pair.
  return clean.length <= MAX_TEXT
    ? clean
    : `${Array.from(clean.slice(0, MAX_TEXT - 2))
        .slice(0, -1)
        .join('')}…`
}

export function encodeRecord(record: StateRecord): Uint8Array {
  const checked = v.safeParse(v.object({ ...body.entries, state }), record.body)
  if (!checked.success) {
    // A record that could not be read back must never be written.
    const issue = checked.issues[0]
    throw deviceErrors.RECORD_INVALID(`the new record is wrong at ${v.getDotPath(issue)}: ${issue.message}`)
  }
  const text = `${JSON.stringify(record.body)}\n`
  const bytes = Buffer.from(`${MAGIC} ${record.generation} ${digest(record.generation, text)}\n${text}`)
  if (bytes.length > MAX_RECORD_BYTES) {
    throw deviceErrors.RECORD_INVALID(`the new record has ${bytes.length} bytes, ${MAX_RECORD_BYTES} are allowed`)
  }
  return bytes
}

/** @throws RECORD_INVALID when torn, damaged, or of another form */
export function decodeRecord(bytes: Uint8Array, name: string): StateRecord {
  const all = Buffer.from(bytes).toString('utf8')
  const match = /^bistable-record 1 ([1-9][0-9]{0,15}) ([0-9a-f]{64})\n/.exec(all)
  if (match === null) throw deviceErrors.RECORD_INVALID(`${name} does not begin with a record header`)
  const [header, generationText = '', wanted] = match
  const generation = Number(generationText)
  const rest = all.slice(header.length)
  if (!Number.isSafeInteger(generation) || digest(generation, rest) !== wanted) {
    throw deviceErrors.RECORD_INVALID(`${name} does not match its checksum`)
  }
  const result = v.safeParse(body, parseJson(rest))
  if (!result.success) {
    const wrong = result.issues.map((issue) => `${v.getDotPath(issue) ?? '(top)'}: ${issue.message}`)
    throw deviceErrors.RECORD_INVALID(`${name}: ${wrong.join('; ')}`)
  }
  return { generation, body: result.output }
}

/** Undefined for what is not JSON: the schema then refuses it. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function digest(generation: number, text: string): string {
  return createHash('sha256').update(`${generation}\n${text}`).digest('hex')
}

export function newest(...numbers: readonly ReleaseNumber[]): ReleaseNumber {
  return numbers.reduce((best, n) => (compareNumbers(n, best) > 0 ? n : best), { epoch: 0, counter: 0 })
}

/** Reads "EPOCH.COUNTER"; undefined for anything else. */
export function readNumber(text: string): ReleaseNumber | undefined {
  const match = /^(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})$/.exec(text)
  if (match === null) return undefined
  const [epoch, counter] = [Number(match[1]), Number(match[2])]
  return Number.isSafeInteger(epoch) && Number.isSafeInteger(counter) ? { epoch, counter } : undefined
}
