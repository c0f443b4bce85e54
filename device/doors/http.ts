import http from 'node:http'
import https from 'node:https'
import { KiB } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import { checkSame, type FileFacts, isWebPage, type Part, readAnswer, validator } from './answer.ts'
import { bodyPieces, DEFAULT_RATE, type RateLimits } from './body.ts'
import { type DoorClock, systemClock } from './clock.ts'
import { doorErrors } from './errors.ts'
import { DEFAULT_PATIENCE, Patience, type PatienceLimits } from './patience.ts'
import { type Answer, type Connection, get, parseAddress, shown, Transient } from './request.ts'

/** The file is asked for from its start; these bytes are kept, so that small files take one request. */
const FIRST = 64 * KiB
const MAX_SIZE = 1024 ** 4
/** From a server without ranges, at most this many times the file's size is read in all. */
const WHOLE_READS = 4

export interface HttpDoorOptions {
  readonly clock?: DoorClock
  /** 0 <= value < 1, for the jitter of pauses. */
  readonly random?: () => number
  /** Stops opening; a read has its own signal. */
  readonly signal?: AbortSignal
  /** Until the headers of an answer arrived, per request. Default 30 s. */
  readonly answerMs?: number
  readonly rate?: RateLimits
  readonly patience?: PatienceLimits
  /** A file larger than this is refused. Default 1 TiB; give a small limit for a small file. */
  readonly maxSize?: number
  readonly userAgent?: string
}

/**
 * A file on a web server, by range requests.
 *
 * Resumes at the exact byte when a connection breaks, waits between tries, gives up after a bounded number without
 * progress. Every answer must be about the file that was opened (size, ETag, date). A server that ignores ranges is
 * read from the start, bounded. One read at a time.
 *
 * @throws TRANSPORT_…; the signal's reason when aborted
 */
export async function openHttpDoor(address: string, options: HttpDoorOptions = {}): Promise<ByteSource> {
  const door = new HttpDoor(parseAddress(address), options)
  try {
    await door.open(options.signal)
    return door
  } catch (error) {
    await door.close()
    throw error
  }
}

/** A body that is read on from read to read, from a server without ranges. */
interface Cursor {
  readonly pieces: AsyncGenerator<Uint8Array>
  /** Where `rest`, or the next piece, stands in the file. */
  at: number
  rest: Uint8Array
}

class HttpDoor implements ByteSource {
  readonly name: string
  readonly #address: URL
  /** Where redirects led: asked directly from then on. */
  #url: URL
  readonly #connection: Connection
  readonly #options: HttpDoorOptions
  readonly #rate: RateLimits
  #facts: FileFacts = { size: 0, etag: undefined, lastModified: undefined, html: false }
  #first: Uint8Array = new Uint8Array(0)
  #ranges = true
  #cursor: Cursor | undefined
  #wholeBytes = 0

  constructor(address: URL, options: HttpDoorOptions) {
    this.name = shown(address)
    this.#address = address
    this.#url = address
    this.#options = options
    this.#rate = options.rate ?? DEFAULT_RATE
    const agent = { keepAlive: true, maxSockets: 2 }
    this.#connection = {
      clock: options.clock ?? systemClock,
      answerMs: options.answerMs ?? 30_000,
      agents: { http: new http.Agent(agent), https: new https.Agent(agent) },
    }
  }

  get size(): number {
    return this.#facts.size
  }

  async open(signal: AbortSignal | undefined): Promise<void> {
    const patience = this.#patience()
    for (;;) {
      try {
        await this.#openOnce(signal)
        return
      } catch (error) {
        await this.#pause(patience, error, signal)
      }
    }
  }

  async #openOnce(signal: AbortSignal | undefined): Promise<void> {
    const answer = await get(this.#connection, this.#address, this.#headers(`bytes=0-${FIRST - 1}`), signal)
    const { facts, ranged } = accept(answer, 0, FIRST - 1)
    const most = this.#options.maxSize ?? MAX_SIZE
    if (facts.size > most) {
      answer.body.destroy()
      throw doorErrors.TRANSPORT_TOO_LARGE(`${this.name} has ${facts.size} bytes, at most ${most} are allowed`)
    }
    const first = new Uint8Array(Math.min(FIRST, facts.size))
    let at = 0
    for await (const piece of this.#guarded(answer, signal)) {
      first.set(piece.subarray(0, first.length - at), at)
      at = Math.min(first.length, at + piece.length)
      if (at === first.length && !endsItself(answer, first.length)) break
    }
    if (at < first.length) throw new Transient('TRANSPORT_LOST', `${this.name} stopped after ${at} bytes`)
    if (isWebPage(first, facts.html))
      throw doorErrors.TRANSPORT_WRONG_ANSWER(`${this.name} answers with a web page, not with the file`)
    this.#facts = facts
    this.#first = first
    this.#ranges = ranged
    this.#url = answer.url
  }

  async *read(
    offset: number,
    length: number,
    options: { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array> {
    const { signal } = options
    const end = offset + length
    if (end > this.size) throw doorErrors.TRANSPORT_SHORT(`${this.name} has ${this.size} bytes, ${end} are needed`)
    const kept = this.#first.subarray(offset, end)
    if (kept.length > 0) yield kept
    let at = offset + kept.length
    const patience = this.#patience()
    while (at < end) {
      signal?.throwIfAborted()
      try {
        for await (const piece of this.#ranges ? this.#part(at, end, signal) : this.#onwards(at, end, signal)) {
          at += piece.length
          patience.progress(piece.length)
          yield piece
        }
      } catch (error) {
        await this.#pause(patience, error, signal)
      }
    }
  }

  async close(): Promise<void> {
    await this.#dropCursor()
    this.#connection.agents.http.destroy()
    this.#connection.agents.https.destroy()
  }

  /** One range request: yields bytes from `at` on, never beyond `end`; may end early. */
  async *#part(at: number, end: number, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const answer = await this.#ask(`bytes=${at}-${end - 1}`, signal)
    const part = this.#acceptSame(answer, at, end - 1)
    if (!part.ranged) {
      // The same file, whole: this server does no ranges (any more).
      this.#ranges = false
      this.#startCursor(answer)
      return
    }
    let left = end - at
    const exact = endsItself(answer, left)
    for await (const piece of this.#guarded(answer, signal)) {
      const wanted = piece.subarray(0, left)
      left -= wanted.length
      if (wanted.length > 0) yield wanted
      if (left === 0 && !exact) return
    }
    // A server may cap its parts, but a crumb a time is a failure: it is counted, and answered with a pause.
    const got = end - at - left
    if (left > 0 && got < FIRST) throw new Transient('TRANSPORT_LOST', `${this.name} sent a part of ${got} bytes`)
  }

  /** Reads on in a whole body, from a server without ranges; starts it again when `at` lies behind. */
  async *#onwards(at: number, end: number, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    if (this.#cursor === undefined || this.#cursor.at > at) {
      await this.#dropCursor()
      const answer = await this.#ask(undefined, signal)
      if (this.#acceptSame(answer, 0, this.size - 1).ranged) {
        answer.body.destroy()
        throw doorErrors.TRANSPORT_WRONG_ANSWER(`${this.name} sent a part, the whole file was asked for`)
      }
      this.#startCursor(answer)
    }
    const cursor = this.#cursor
    if (cursor === undefined) return
    const stop = (): void => {
      this.#dropCursor().catch(() => undefined)
    }
    signal?.addEventListener('abort', stop, { once: true })
    try {
      while (cursor.at < end) {
        if (cursor.rest.length === 0) {
          const next = await cursor.pieces.next()
          signal?.throwIfAborted()
          if (next.done === true) throw new Transient('TRANSPORT_LOST', `${this.name} ended at byte ${cursor.at}`)
          cursor.rest = next.value
          this.#countWhole(next.value.length)
        }
        const skip = Math.min(cursor.rest.length, Math.max(0, at - cursor.at))
        const wanted = cursor.rest.subarray(skip, Math.min(cursor.rest.length, end - cursor.at))
        cursor.at += skip + wanted.length
        cursor.rest = cursor.rest.subarray(skip + wanted.length)
        if (wanted.length > 0) yield wanted
      }
    } catch (error) {
      await this.#dropCursor()
      throw error
    } finally {
      signal?.removeEventListener('abort', stop)
    }
  }

  #countWhole(bytes: number): void {
    this.#wholeBytes += bytes
    if (this.#wholeBytes > WHOLE_READS * this.size)
      throw doorErrors.TRANSPORT_NO_RANGES(
        `${this.name} gives no ranges; ${this.#wholeBytes} bytes were read for a file of ${this.size}`,
      )
  }

  #startCursor(answer: Answer): void {
    const pieces = bodyPieces(answer.body, answer.url, this.#connection.clock, this.#rate)
    // Between reads nobody listens; an error that comes then is found by the next read.
    answer.body.on('error', () => undefined)
    this.#cursor = { pieces, at: 0, rest: new Uint8Array(0) }
    this.#stopCursor = () => answer.body.destroy()
  }

  #stopCursor: () => void = () => undefined

  async #dropCursor(): Promise<void> {
    this.#cursor = undefined
    this.#stopCursor()
  }

  async #ask(range: string | undefined, signal: AbortSignal | undefined): Promise<Answer> {
    const answer = await get(this.#connection, this.#url, this.#headers(range), signal)
    if (answer.status >= 400 && answer.status < 500 && this.#url.href !== this.#address.href) {
      // An address that a redirect gave may have expired: ask the first one again.
      answer.body.destroy()
      this.#url = this.#address
      throw new Transient('TRANSPORT_LOST', `${shown(answer.url)} answered ${answer.status}`)
    }
    this.#url = answer.url
    return answer
  }

  #headers(range: string | undefined): Record<string, string> {
    const headers: Record<string, string> = {
      'User-Agent': this.#options.userAgent ?? 'bistable',
      Accept: '*/*',
      'Accept-Encoding': 'identity',
    }
    if (range !== undefined) headers['Range'] = range
    const same = validator(this.#facts)
    if (range !== undefined && same !== undefined) headers['If-Range'] = same
    return headers
  }

  #acceptSame(answer: Answer, offset: number, last: number): Part {
    const part = accept(answer, offset, last)
    try {
      checkSame(this.name, this.#facts, part.facts)
    } catch (error) {
      answer.body.destroy()
      throw error
    }
    return part
  }

  /** The pieces of an answer, ended by the signal. */
  async *#guarded(answer: Answer, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const stop = (): void => {
      answer.body.destroy()
    }
    signal?.addEventListener('abort', stop, { once: true })
    try {
      yield* bodyPieces(answer.body, answer.url, this.#connection.clock, this.#rate)
    } finally {
      signal?.removeEventListener('abort', stop)
      signal?.throwIfAborted()
    }
  }

  #patience(): Patience {
    return new Patience(this.#options.patience ?? DEFAULT_PATIENCE, this.#options.random ?? Math.random)
  }

  /** Waits before the next try, or throws what is final. */
  async #pause(patience: Patience, error: unknown, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    if (!(error instanceof Transient)) throw error
    const pause = patience.failed(error.waitMs)
    if (pause === undefined)
      throw doorErrors[error.code](`${error.message}, again and again without progress`, { cause: error })
    await this.#connection.clock.sleep(pause, signal)
  }
}

/** With an exact length the body ends by itself; read to that end, its connection serves the next request. */
function endsItself(answer: Answer, wanted: number): boolean {
  return answer.headers['content-length'] === String(wanted)
}

function accept(answer: Answer, offset: number, last: number): Part {
  try {
    return readAnswer(answer, offset, last)
  } catch (error) {
    answer.body.destroy()
    throw error
  }
}
