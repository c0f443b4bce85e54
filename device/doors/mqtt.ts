import type { Sha256 } from '../../base/bytes.ts'
import type { ByteRange, ByteSource } from '../../base/source.ts'
import { type Ask, readAnswer, readPiece, toRanges } from '../../broker/messages.ts'
import { deviceTopic, PIECE_BYTES, pieceLength, piecesTopic } from '../../broker/topics.ts'
import { askMessage, throwIfFinal, unanswered } from './ask.ts'
import { type Brokers, brokerError, type Lease } from './brokers.ts'
import type { DoorClock } from './clock.ts'
import { doorErrors } from './errors.ts'
import { Waiter } from './waiter.ts'
import { segmentOf, Window } from './window.ts'

/**
 * A publish folder on a broker. Small signed files are retained messages; a bundle comes in pieces, which the publisher
 * sends when they are asked for, once for all devices that wait for them. What a broker or a publisher says is as
 * untrusted as what a web server says, and everything that is kept of it is bounded by the window.
 */

/** Pieces kept behind the reader: the next range often begins in the last piece of this one. */
const KEEP_PIECES = 8
const MAX_SIZE = 1024 ** 4
/** A broker that was asked and says nothing at all for so long is not there any more. */
const DEAD_MS = 20_000

/** Marks that come faster are not answered. */
const MARK_MS = 250

export interface MqttDoorOptions {
  readonly signal?: AbortSignal
  /** How long a broker and a publisher may take to say what a file is. Milliseconds; default 30 s. */
  readonly answerMs?: number
  /** Without a useful byte for this long, a read fails. Milliseconds; default 3 min, longer than any pause of the link. */
  readonly giveUpMs?: number
  /** Connections that end one after the other without a useful byte between, before a read fails. Default 8. */
  readonly tries?: number
  /** First pause after which pieces that did not come are asked for again; doubles up to 16 times. Default 5 s. */
  readonly askAgainMs?: number
}

interface Bundle {
  readonly size: number
  readonly digest: Sha256
}

/**
 * A bundle on a broker, by pieces. Survives restarts of the broker and of the publisher; what has arrived is kept. One
 * read at a time.
 * @throws TRANSPORT_…; the signal's reason when aborted
 */
export async function openMqttDoor(
  brokers: Brokers,
  address: string,
  options: MqttDoorOptions = {},
): Promise<ByteSource> {
  const lease = brokers.lease(address)
  try {
    lease.link.again()
    const door = new MqttDoor(lease, brokers.clock, options)
    await door.open()
    return door
  } catch (error) {
    lease.release()
    throw error
  }
}

class MqttDoor implements ByteSource {
  readonly name: string
  readonly #lease: Lease
  readonly #clock: DoorClock
  readonly #options: MqttDoorOptions
  readonly #waiter: Waiter
  readonly #detach: () => void
  readonly #listener
  #bundle: Bundle | undefined
  #failed: Error | undefined
  /** Pieces that arrived, by number: those waited for, and a few behind the reader. */
  readonly #got = new Map<number, Uint8Array>()
  /** Pieces that the present read waits for, and their segments. */
  #missing = new Set<number>()
  #segments = new Set<number>()
  #askNow = false
  /** Highest piece that was asked for. */
  #top = -1
  /** When the last useful piece came. */
  #usefulAt = Number.NEGATIVE_INFINITY
  /** Connections that ended since the last useful byte. */
  #ends = 0
  /** What was sent meanwhile went past. */
  #reconnected = false
  /** The last mark, and when it came: what was asked for before and is still missing is lost. */
  #mark: string | undefined
  #markedAt = Number.NEGATIVE_INFINITY

  constructor(lease: Lease, clock: DoorClock, options: MqttDoorOptions) {
    this.name = `${lease.link.name}/${lease.file}`
    this.#lease = lease
    this.#clock = clock
    this.#options = options
    this.#waiter = new Waiter(clock)
    this.#listener = {
      message: (topic: string, payload: Uint8Array, retained: boolean) => this.#hear(topic, payload, retained),
      subscribed: (topic: string, granted: boolean) => {
        if (granted) return
        this.#fail(doorErrors.TRANSPORT_REFUSED(`${lease.link.name} does not let this device hear ${topic}`))
      },
      up: () => {
        this.#askNow = true
        this.#reconnected = true
        this.#waiter.ring()
      },
      down: () => {
        this.#ends++
        this.#waiter.ring()
      },
    }
    this.#detach = lease.link.listen(this.#listener)
  }

  get size(): number {
    return this.#bundle?.size ?? 0
  }

  async open(): Promise<void> {
    const { link, root, file, device } = this.#lease
    const { signal, answerMs = 30_000, askAgainMs = 5000, tries = 8 } = this.#options
    try {
      link.want(this.#listener, deviceTopic(root, device, 'answer'))
      const ends = this.#clock.now() + answerMs
      for (let pause = askAgainMs; this.#bundle === undefined; pause *= 2) {
        if (this.#failed !== undefined) throw this.#failed
        throwIfFinal(link.failure)
        if (link.failure !== undefined && this.#ends >= tries) throw brokerError(link.failure)
        const left = ends - this.#clock.now()
        if (left <= 0) throw unanswered(this.#lease)
        await link.publish(askMessage(this.#lease, { v: 1, file }))
        await this.#waiter.next(Math.min(pause, left), signal)
      }
    } catch (error) {
      this.#detach()
      throw error
    }
  }

  read(offset: number, length: number, options: { readonly signal?: AbortSignal } = {}): AsyncGenerator<Uint8Array> {
    return this.readRanges([{ offset, length }], options)
  }

  /** Asks ahead over the gaps between ranges. */
  async *readRanges(
    ranges: readonly ByteRange[],
    { signal }: { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array> {
    const window = new Window(ranges)
    let fresh = true
    for (const { offset, length } of ranges) {
      const end = offset + length
      if (end > this.size) throw doorErrors.TRANSPORT_SHORT(`${this.name} has ${this.size} bytes, ${end} are needed`)
      for (let at = offset; at < end; ) {
        const index = Math.floor(at / PIECE_BYTES)
        if (fresh && index <= this.#top && !this.#got.has(index)) await this.#askForNothing()
        fresh = false
        this.#listenTo(window.moveTo(index))
        const piece = await this.#piece(index, signal)
        const wanted = piece.subarray(at - index * PIECE_BYTES, end - index * PIECE_BYTES)
        at += wanted.length
        yield wanted
      }
    }
  }

  async close(): Promise<void> {
    await this.#askForNothing()
    this.#detach()
    this.#got.clear()
    this.#lease.release()
  }

  /** Listens to the segments of these pieces, and to no others; drops what lies behind. */
  #listenTo(ahead: readonly number[]): void {
    const { link, root } = this.#lease
    const digest = this.#bundle?.digest ?? ''
    const missing = new Set(ahead.filter((index) => !this.#got.has(index)))
    const segments = new Set([...missing].map(segmentOf))
    for (const segment of segments)
      if (!this.#segments.has(segment)) link.want(this.#listener, piecesTopic(root, digest, segment))
    // Those of a read that ended are left when the next one turns out to need others: it often goes on from there.
    if (segments.size > 0) {
      for (const segment of this.#segments)
        if (!segments.has(segment)) link.unwant(this.#listener, piecesTopic(root, digest, segment))
      this.#segments = segments
    }
    if ([...missing].some((index) => !this.#missing.has(index))) this.#askNow = true
    this.#missing = missing
    const [first = 0] = ahead
    const last = ahead.at(-1) ?? 0
    for (const index of this.#got.keys()) if (index < first - KEEP_PIECES || index > last) this.#got.delete(index)
  }

  async #piece(index: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { askAgainMs = 5000, giveUpMs = 180_000, tries = 8 } = this.#options
    const since = this.#clock.now()
    let pause = askAgainMs
    let asked = since
    for (;;) {
      const piece = this.#got.get(index)
      if (piece !== undefined) {
        await this.#askWhatIsNew()
        return piece
      }
      if (this.#failed !== undefined) throw this.#failed
      const now = this.#clock.now()
      const { failure } = this.#lease.link
      if (failure !== undefined && (!failure.passing || this.#ends >= tries)) throw brokerError(failure)
      if (now - since >= giveUpMs) {
        if (failure !== undefined) throw brokerError(failure)
        throw doorErrors.TRANSPORT_STALLED(`${this.name} did not send byte ${index * PIECE_BYTES} for ${giveUpMs} ms`)
      }
      if (this.#askNow) {
        await this.#askWhatIsNew()
        asked = now
      } else if (now - Math.max(asked, this.#usefulAt) >= pause) {
        // The subscriptions that go along are answered by any broker that lives.
        if (this.#lease.link.silentMs > DEAD_MS) this.#lease.link.renew()
        await this.#ask(true)
        asked = now
        pause = Math.min(pause * 2, askAgainMs * 16)
      }
      await this.#waiter.next(
        Math.max(1, Math.min(Math.max(asked, this.#usefulAt) + pause, since + giveUpMs) - now),
        signal,
      )
    }
  }

  /** The publisher forgets what it sent: without it, it would wait with what was had and dropped here. */
  async #askForNothing(): Promise<void> {
    const digest = this.#bundle?.digest
    if (digest === undefined || this.#top < 0) return
    this.#top = -1
    await this.#lease.link.publish(askMessage(this.#lease, { v: 1, bundle: digest, pieces: [] }))
  }

  /** Asks for the window when something in it is new: once for each segment on the way. */
  async #askWhatIsNew(): Promise<void> {
    if (!this.#askNow) return
    this.#askNow = false
    // What was sent to the connection before is not on its way any more.
    if (this.#reconnected) await this.#askForNothing()
    this.#reconnected = false
    await this.#ask(false)
  }

  async #ask(again: boolean): Promise<void> {
    const bundle = this.#bundle
    if (bundle === undefined || this.#missing.size === 0) return
    for (const index of this.#missing) if (index > this.#top) this.#top = index
    const { link, root } = this.#lease
    // In case it was the subscription that got lost.
    if (again)
      for (const segment of this.#segments) link.want(this.#listener, piecesTopic(root, bundle.digest, segment))
    const pieces = toRanges([...this.#missing].sort((a, b) => a - b))
    const mark = this.#mark === undefined ? {} : { mark: this.#mark }
    const ask: Ask = { v: 1, bundle: bundle.digest, pieces, ...(again ? { again: true as const } : {}), ...mark }
    await this.#lease.link.publish(askMessage(this.#lease, ask))
  }

  #hear(topic: string, payload: Uint8Array, retained: boolean): boolean {
    const { root, device } = this.#lease
    if (topic === deviceTopic(root, device, 'answer')) return this.#hearAnswer(payload, retained)
    const bundle = this.#bundle
    // Pieces are never retained; one that is was put there by somebody else.
    if (retained || bundle === undefined || !topic.startsWith(`${root}/pieces/`)) return false
    const piece = readPiece(payload)
    if (piece === undefined || piece.bundle !== bundle.digest || piece.offset % PIECE_BYTES !== 0) return false
    const index = piece.offset / PIECE_BYTES
    if (topic !== piecesTopic(root, bundle.digest, segmentOf(index))) return false
    if (!this.#missing.has(index) || piece.data.length !== pieceLength(bundle.size, index)) return false
    this.#missing.delete(index)
    // A copy: the message's buffer may be a view of a larger one.
    this.#got.set(index, Uint8Array.from(piece.data))
    this.#ends = 0
    this.#usefulAt = this.#clock.now()
    this.#waiter.ring()
    return true
  }

  #hearAnswer(payload: Uint8Array, retained: boolean): boolean {
    const answer = retained ? undefined : readAnswer(payload)
    if (answer === undefined) return false
    const { file } = this.#lease
    if ('mark' in answer) return this.#hearMark(answer.bundle, answer.mark)
    if ('gone' in answer) {
      if (answer.bundle !== this.#bundle?.digest) return false
      this.#fail(doorErrors.TRANSPORT_CHANGED(`${this.name} is not what it was when it was opened`))
    } else if (answer.file !== file) return false
    else if ('missing' in answer) {
      if (this.#bundle !== undefined) return false
      this.#fail(doorErrors.TRANSPORT_MISSING(`${this.#lease.link.name}: the publisher has no ${file}`))
    } else if (this.#bundle === undefined) {
      if (answer.size > MAX_SIZE)
        this.#fail(doorErrors.TRANSPORT_TOO_LARGE(`${this.name} is said to have ${answer.size} bytes`))
      else this.#bundle = { size: answer.size, digest: answer.digest }
    } else return answer.digest === this.#bundle.digest
    this.#waiter.ring()
    return true
  }

  #hearMark(bundle: Sha256, mark: string): boolean {
    const now = this.#clock.now()
    if (bundle !== this.#bundle?.digest || mark === this.#mark || now - this.#markedAt < MARK_MS) return false
    this.#mark = mark
    this.#markedAt = now
    if (this.#missing.size > 0) this.#askNow = true
    this.#waiter.ring()
    return true
  }

  #fail(error: Error): void {
    this.#failed ??= error
    this.#waiter.ring()
  }
}
