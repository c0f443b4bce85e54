import { KiB } from '../../base/bytes.ts'
import { onlyRanges, type PlannedRequest, planRequests } from '../../base/requests.ts'
import type { ByteRange, ByteSource } from '../../base/source.ts'
import { checkSame, type FileFacts, isWebPage, type Part, readAnswer, requestHeaders } from './answer.ts'
import { bodyPieces, DEFAULT_RATE, type RateLimits } from './body.ts'
import { type DoorClock, systemClock } from './clock.ts'
import { type Connection, connect, type Reach } from './connect.ts'
import { doorErrors } from './errors.ts'
import { DEFAULT_PATIENCE, Patience, type PatienceLimits } from './patience.ts'
import { type Answer, dropped, endsItself, get, parseAddress, shown, Transient } from './request.ts'
import { WholeBody } from './whole.ts'

/** The file is asked for from its start; these bytes are kept, so that small files take one request. */
const FIRST = 8 * KiB
const MAX_SIZE = 1024 ** 4
/** From a server without ranges, at most this many times the file's size is read in all. */
const WHOLE_READS = 4
/**
 * What a request costs, in bytes. Its headers and the answer's are near 1 KiB; the rest is the server's work and the
 * wait, of which asking ahead hides most. 2 MB/s and 16 ms a request on the server's side come to this.
 */
const REQUEST_COST = 32 * KiB
/** Requests under way at once. What comes early waits in its socket, so memory does not grow. */
const ASKED_AHEAD = 3

export interface HttpDoorOptions extends Reach {
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
  /** Bytes; between ranges that lie closer than this everything is fetched. Default 32 KiB. */
  readonly requestCost?: number
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
  #whole: WholeBody | undefined
  #wholeBytes = 0

  constructor(address: URL, options: HttpDoorOptions) {
    this.name = shown(address)
    this.#address = address
    this.#url = address
    this.#options = options
    this.#rate = options.rate ?? DEFAULT_RATE
    this.#connection = connect(options.clock ?? systemClock, options.answerMs ?? 30_000, options)
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
    const answer = await get(
      this.#connection,
      this.#address,
      requestHeaders(`bytes=0-${FIRST - 1}`, this.#facts, this.#options.userAgent),
      signal,
    )
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

  read(offset: number, length: number, options: { readonly signal?: AbortSignal } = {}): AsyncGenerator<Uint8Array> {
    return this.#read({ offset, length }, options.signal)
  }

  /** Merges ranges that lie close, and asks for the next ones while the present one comes. */
  async *readRanges(
    ranges: readonly ByteRange[],
    options: { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array> {
    const { signal } = options
    const plan = planRequests(ranges, this.#options.requestCost ?? REQUEST_COST)
    const asked = new Map<PlannedRequest, Promise<Answer> | undefined>()
    try {
      for (const [i, request] of plan.entries()) {
        if (this.#ranges)
          for (const next of plan.slice(i, i + ASKED_AHEAD))
            if (!asked.has(next)) asked.set(next, this.#askAhead(next, signal))
        const first = asked.get(request)
        asked.delete(request)
        yield* onlyRanges(request, this.#read(request, signal, this.#ranges ? first : dropped(first)))
      }
    } finally {
      for (const answer of asked.values()) dropped(answer)
    }
  }

  /** @param first the answer to the first request for it, asked for already */
  async *#read(
    { offset, length }: ByteRange,
    signal: AbortSignal | undefined,
    first?: Promise<Answer>,
  ): AsyncGenerator<Uint8Array> {
    const end = offset + length
    if (end > this.size) {
      dropped(first)
      throw doorErrors.TRANSPORT_SHORT(`${this.name} has ${this.size} bytes, ${end} are needed`)
    }
    let ahead = first
    const kept = this.#first.subarray(offset, end)
    let at = offset + kept.length
    const patience = this.#patience()
    try {
      if (kept.length > 0) yield kept
      while (at < end) {
        signal?.throwIfAborted()
        const answer = ahead
        ahead = undefined
        try {
          for await (const piece of this.#ranges
            ? this.#part(at, end, signal, answer)
            : this.#onwards(at, end, signal)) {
            at += piece.length
            patience.progress(piece.length)
            yield piece
          }
        } catch (error) {
          await this.#pause(patience, error, signal)
        }
      }
    } finally {
      dropped(ahead)
    }
  }

  /** Asks for what `#read` does not hold of a range; undefined when it holds all of it. */
  #askAhead({ offset, length }: ByteRange, signal: AbortSignal | undefined): Promise<Answer> | undefined {
    const end = offset + length
    const from = Math.max(offset, this.#first.length)
    if (from >= end || end > this.size) return undefined
    const answer = this.#ask(`bytes=${from}-${end - 1}`, signal)
    // Its failure is met when it is awaited; until then it must not count as unhandled.
    answer.catch(() => undefined)
    return answer
  }

  async close(): Promise<void> {
    this.#dropWhole()
    this.#connection.close()
  }

  /** One range request: yields bytes from `at` on, never beyond `end`; may end early. */
  async *#part(
    at: number,
    end: number,
    signal: AbortSignal | undefined,
    asked?: Promise<Answer>,
  ): AsyncGenerator<Uint8Array> {
    const answer = await (asked ?? this.#ask(`bytes=${at}-${end - 1}`, signal))
    const part = this.#acceptSame(answer, at, end - 1)
    if (!part.ranged) {
      // The same file, whole: this server does no ranges (any more).
      this.#ranges = false
      this.#startWhole(answer)
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
    if (this.#whole === undefined || this.#whole.at > at) {
      this.#dropWhole()
      const answer = await this.#ask(undefined, signal)
      if (this.#acceptSame(answer, 0, this.size - 1).ranged) {
        answer.body.destroy()
        throw doorErrors.TRANSPORT_WRONG_ANSWER(`${this.name} sent a part, the whole file was asked for`)
      }
      this.#startWhole(answer)
    }
    try {
      yield* this.#whole?.read(at, end, signal, (bytes) => this.#countWhole(bytes)) ?? []
    } catch (error) {
      this.#dropWhole()
      throw error
    }
  }

  #countWhole(bytes: number): void {
    this.#wholeBytes += bytes
    if (this.#wholeBytes > WHOLE_READS * this.size)
      throw doorErrors.TRANSPORT_NO_RANGES(
        `${this.name} gives no ranges; ${this.#wholeBytes} bytes were read for a file of ${this.size}`,
      )
  }

  #startWhole(answer: Answer): void {
    this.#whole = new WholeBody(this.name, answer, this.#connection.clock, this.#rate)
  }

  #dropWhole(): void {
    this.#whole?.stop()
    this.#whole = undefined
  }

  async #ask(range: string | undefined, signal: AbortSignal | undefined): Promise<Answer> {
    const answer = await get(
      this.#connection,
      this.#url,
      requestHeaders(range, this.#facts, this.#options.userAgent),
      signal,
    )
    if (answer.status >= 400 && answer.status < 500 && this.#url.href !== this.#address.href) {
      // An address that a redirect gave may have expired: ask the first one again.
      answer.body.destroy()
      this.#url = this.#address
      throw new Transient('TRANSPORT_LOST', `${shown(answer.url)} answered ${answer.status}`)
    }
    this.#url = answer.url
    return answer
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

function accept(answer: Answer, offset: number, last: number): Part {
  try {
    return readAnswer(answer, offset, last)
  } catch (error) {
    answer.body.destroy()
    throw error
  }
}
