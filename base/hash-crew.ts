import { hash } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { pageAlignedShared } from './aligned.ts'
import { MiB } from './bytes.ts'

/**
 * A second thread for SHA-256: hashing is most of an install's processor time, and half of it can be done beside. The
 * caller and the thread take spans of a piece from one counter in shared memory until none is left, so a thread that
 * comes late, or never, costs time and nothing else: the caller does what nobody has taken.
 *
 * Like the thread pool it is one for the process. It lives while somebody uses it; who reads asks it for memory, and who
 * hashes asks whether a piece stands there.
 */

interface HashCrew {
  readonly memory: SharedArrayBuffer
  buffer(): Uint8Array | undefined
  release(buffer: Uint8Array): void
  digests(piece: Uint8Array, bounds: Int32Array, count: number): Buffer | undefined
  close(): void
}

const DIGEST = 32
const PIECE = MiB
const PIECES = 6
/** In one piece. */
export const MAX_SPANS = 1024
/** Under this a wake-up of the thread costs what it saves. */
const WORTH_BYTES = 64 * 1024
/** What one taking is at least. */
const UNIT_BYTES = 64 * 1024
/** A unit takes a millisecond; a thread that is gone must not hold an install up. */
const PATIENCE_MS = 2000

// Words of the control memory. TICKET: the job's number above, the next unit in the lower 12 bits (CLOSED: none to
// take, the table is being written); negative: the end.
const TICKET = 0
const DONE = 1
/** Of the job: spans in all, spans in one taking, where the piece stands. Where each span begins follows, and where the last one ends. */
const SPANS = 2
const PER_UNIT = 3
const BASE = 4
const TABLE = 5
const CLOSED = 4095

type Hash = (algorithm: 'sha256', data: Uint8Array, encoding: 'binary') => string

/**
 * Takes units of the present job until there is none, and returns the ticket that said so. Runs in both threads, in the other one from its text:
 * so it uses nothing but its arguments, and no function of its own.
 */
function takeUnits(control: Int32Array, memory: Uint8Array, digests: Buffer, hash: Hash): number {
  for (;;) {
    const now = Atomics.load(control, 0)
    const unit = now & 4095
    const per = control[3] as number
    const end = Math.min((unit + 1) * per, control[2] as number)
    if (now < 0 || unit === 4095 || unit * per >= end) return now
    // Who still finds this ticket has read this job's words: it is closed before they change.
    if (Atomics.compareExchange(control, 0, now, now + 1) !== now) continue
    const base = control[4] as number
    // latin1 through a string is the fastest way out of the one-shot hash, and one string for all of them faster still.
    let found = ''
    for (let i = unit * per; i < end; i++) {
      const from = base + (control[5 + i] as number)
      const to = base + (control[6 + i] as number)
      found += hash('sha256', memory.subarray(from, to), 'binary')
    }
    digests.write(found, unit * per * 32, found.length, 'latin1')
    Atomics.add(control, 1, 1)
    Atomics.notify(control, 1)
  }
}

const THREAD = `
const { hash } = require('node:crypto')
const { workerData } = require('node:worker_threads')
const control = new Int32Array(workerData.control)
const memory = new Uint8Array(workerData.memory)
const digests = Buffer.from(workerData.digests)
const takeUnits = ${takeUnits.toString()}
for (let seen = 0; seen >= 0; ) {
  Atomics.wait(control, ${TICKET}, seen)
  seen = takeUnits(control, memory, digests, hash)
}
`

/** Starts a thread; undefined on a machine with one processor, where it would only cost. */
function start(processors: number): HashCrew | undefined {
  if (processors < 2) return undefined
  const memory = pageAlignedShared(PIECES * PIECE)
  shared.add(memory)
  const control = new Int32Array(new SharedArrayBuffer((TABLE + MAX_SPANS + 1) * 4))
  const digests = Buffer.from(new SharedArrayBuffer(MAX_SPANS * DIGEST))
  const all = new Uint8Array(memory)
  const free: Uint8Array[] = []
  for (let i = 0; i < PIECES; i++) free.push(new Uint8Array(memory, i * PIECE, PIECE))
  let open = true
  let job = 0
  const thread = new Worker(THREAD, {
    eval: true,
    workerData: { control: control.buffer, memory, digests: digests.buffer },
    resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 16 },
  })
  const close = (): void => {
    if (!open) return
    open = false
    Atomics.store(control, TICKET, -1)
    Atomics.notify(control, TICKET)
    void thread.terminate()
  }
  // It has nothing to say; if it dies, the caller hashes alone.
  thread.on('error', close)
  thread.unref()

  return {
    memory,
    buffer: () => (open ? free.pop() : undefined),
    release: (buffer) => {
      if (buffer.length === PIECE) free.push(buffer)
    },
    digests: (piece, bounds, count) => {
      if (!open || piece.length < WORTH_BYTES || count > MAX_SPANS) return undefined
      const per = Math.max(1, Math.floor((UNIT_BYTES * count) / piece.length))
      const units = Math.ceil(count / per)
      job = (job + 1) % (1 << 18)
      Atomics.store(control, TICKET, (job << 12) | CLOSED)
      control[SPANS] = count
      control[PER_UNIT] = per
      control[BASE] = piece.byteOffset
      control.set(bounds.subarray(0, count + 1), TABLE)
      Atomics.store(control, DONE, 0)
      Atomics.store(control, TICKET, job << 12)
      Atomics.notify(control, TICKET)
      takeUnits(control, all, digests, hash)
      for (let done = Atomics.load(control, DONE); done < units; done = Atomics.load(control, DONE)) {
        if (Atomics.wait(control, DONE, done, PATIENCE_MS) !== 'timed-out') continue
        close()
        return undefined
      }
      return digests
    },
    close,
  }
}

/** Memory of every crew there was. */
const shared = new WeakSet<ArrayBufferLike>()
let crew: HashCrew | undefined
let users = 0

/** The thread runs from the first use until as many have given it back; giving back twice is harmless. */
export function useHashCrew(processors: number = availableParallelism()): () => void {
  if (users++ === 0) crew = startOrNot(processors)
  let used = true
  return () => {
    if (!used) return
    used = false
    if (--users > 0) return
    crew?.close()
    crew = undefined
  }
}

/** Without memory or a thread to be had there is none, and the caller hashes alone. */
function startOrNot(processors: number): HashCrew | undefined {
  try {
    return start(processors)
  } catch {
    return undefined
  }
}

/** Page-aligned memory of 1 MiB that both threads see; undefined when nobody uses the crew, or all of it is given out. */
export const crewBuffer = (): Uint8Array | undefined => crew?.buffer()

/** Takes a buffer back; false for one that is not the crew's. One of a crew that is gone counts as such, and is lost. */
export const giveBack = (buffer: Uint8Array): boolean => {
  if (buffer.buffer === crew?.memory) crew.release(buffer)
  return shared.has(buffer.buffer)
}

/**
 * SHA-256 of each of the spans that stand one behind the other in a piece, 32 bytes each, valid until the next call;
 * undefined when the piece is not in the crew's memory or not worth it: the caller hashes then.
 * @param bounds where each span begins in the piece, and where the last one ends
 */
export const spanDigests = (piece: Uint8Array, bounds: Int32Array, count: number): Buffer | undefined =>
  piece.buffer === crew?.memory ? crew.digests(piece, bounds, count) : undefined
