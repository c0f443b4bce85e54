import type { Sha256 } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import type { BrokerFailure } from '../../broker/failure.ts'
import { type Ask, encodeMessage, readAnswer, readPiece, toRanges } from '../../broker/messages.ts'
import {
  deviceTopic,
  MAX_RETAINED_BYTES,
  PIECE_BYTES,
  pieceLength,
  piecesTopic,
  SEGMENT_PIECES,
} from '../../broker/topics.ts'
import { type Brokers, brokerError, type Lease } from './brokers.ts'
import type { DoorClock } from './clock.ts'
import { doorErrors } from './errors.ts'
import { Waiter } from './waiter.ts'

/**
 * A publish folder on a broker. Small signed files are retained messages; a bundle comes in pieces, which the publisher
 * sends when they are asked for, once for all devices that wait for them. What a broker or a publisher says is as
 * untrusted as what a web server says, and everything that is kept of it is bounded by the window.
 */

/** Segments of a bundle that the device listens to at once: 2 MiB of flow control. */
const WINDOW_SEGMENTS = 8
/** Pieces kept behind the reader: the next range often begins in the last piece of this one. */
const KEEP_PIECES = 8
const MAX_SIZE = 1024 ** 4

export interface MqttDoorOptions {
  readonly signal?: AbortSignal
  /** How long a broker and a publisher may take to say what a file is. Milliseconds; default 30 s. */
  readonly answerMs?: number
  /** Without a useful byte for this long, a read fails. Milliseconds; default 4 min, longer than any pause of the link. */
  readonly giveUpMs?: number
  /** First pause after which pieces that did not come are asked for again; doubles up to 16 times. Default 2 s. */
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
    const door = new MqttDoor(lease, brokers.clock, options)
    await door.open()
    return door
  } catch (error) {
    lease.release()
    throw error
  }
}

/**
 * A retained file: what `GET` is on a web server.
 * @returns undefined when the publisher says that there is none, or when the broker has none and nobody answers
 * @throws TRANSPORT_…; the signal's reason when aborted
 */
export async function fetchRetained(
  brokers: Brokers,
  address: string,
  limit: number,
  { signal, answerMs = 30_000 }: Pick<MqttDoorOptions, 'signal' | 'answerMs'> = {},
): Promise<Uint8Array | undefined> {
  const lease = brokers.lease(address)
  const { link, root, file, device } = lease
  const topic = `${root}/${file}`
  const answers = deviceTopic(root, device, 'answer')
  const waiter = new Waiter(brokers.clock)
  let found: Uint8Array | undefined
  let missing = false
  let refused = false
  /** When the broker said that the subscription stands: a retained message follows at once. */
  let standing: number | undefined
  const ask = (): void => void link.publish(askMessage(lease, { v: 1, file }))
  const listener = {
    message: (heard: string, payload: Uint8Array, retained: boolean): boolean => {
      if (heard === answers) {
        const answer = retained ? undefined : readAnswer(payload)
        if (answer === undefined || !('missing' in answer) || answer.file !== file) return false
        missing = true
      } else if (heard === topic && payload.length > 0) found = payload
      else return false
      waiter.ring()
      return true
    },
    subscribed: (heard: string, granted: boolean): void => {
      if (heard === topic && granted) standing ??= brokers.clock.now()
      if (!granted) refused = true
      waiter.ring()
    },
    up: ask,
    down: () => waiter.ring(),
  }
  const detach = link.listen(listener)
  try {
    link.want(listener, answers)
    link.want(listener, topic)
    const ends = brokers.clock.now() + answerMs
    ask()
    for (;;) {
      if (found !== undefined) return sized(found, limit, link.name, file)
      if (missing) return undefined
      if (refused) throw doorErrors.TRANSPORT_REFUSED(`${link.name} does not let this device hear of ${file}`)
      throwIfFinal(link.failure)
      const now = brokers.clock.now()
      // Nobody answers for the publisher; the broker alone has nothing retained.
      if (standing !== undefined && now - standing >= RETAINED_MS) return undefined
      if (now >= ends) throw unanswered(lease)
      await waiter.next(Math.min(ends, standing === undefined ? ends : standing + RETAINED_MS) - now, signal)
    }
  } finally {
    detach()
    lease.release()
  }
}

/** A retained message follows the subscription's answer on the same connection; then nothing more can be expected. */
const RETAINED_MS = 3000

function sized(bytes: Uint8Array, limit: number, name: string, file: string): Uint8Array {
  if (bytes.length > Math.min(limit, MAX_RETAINED_BYTES))
    throw doorErrors.TRANSPORT_TOO_LARGE(`${file} on ${name} has ${bytes.length} bytes, at most ${limit} are read`)
  return Uint8Array.from(bytes)
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
  /** What was sent meanwhile went past. */
  #reconnected = false

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
      down: () => this.#waiter.ring(),
    }
    this.#detach = lease.link.listen(this.#listener)
  }

  get size(): number {
    return this.#bundle?.size ?? 0
  }

  async open(): Promise<void> {
    const { link, root, file, device } = this.#lease
    const { signal, answerMs = 30_000, askAgainMs = 2000 } = this.#options
    try {
      link.want(this.#listener, deviceTopic(root, device, 'answer'))
      const ends = this.#clock.now() + answerMs
      for (let pause = askAgainMs; this.#bundle === undefined; pause *= 2) {
        if (this.#failed !== undefined) throw this.#failed
        throwIfFinal(link.failure)
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

  async *read(
    offset: number,
    length: number,
    options: { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array> {
    const end = offset + length
    if (end > this.size) throw doorErrors.TRANSPORT_SHORT(`${this.name} has ${this.size} bytes, ${end} are needed`)
    if (length === 0) return
    const first = Math.floor(offset / PIECE_BYTES)
    const last = Math.floor((end - 1) / PIECE_BYTES)
    if (first <= this.#top && !this.#got.has(first)) await this.#askForNothing()
    // Segments are left when the next read turns out to need others: it often goes on where this one ends.
    for (let index = first; index <= last; index++) {
      this.#moveWindow(index, last)
      const piece = await this.#piece(index, options.signal)
      const start = index * PIECE_BYTES
      yield piece.subarray(Math.max(0, offset - start), Math.min(piece.length, end - start))
    }
  }

  async close(): Promise<void> {
    await this.#askForNothing()
    this.#detach()
    this.#got.clear()
    this.#lease.release()
  }

  /** Listens to the segments from piece `from` on, and to no others; drops what lies behind. */
  #moveWindow(from: number, last: number): void {
    const { link, root } = this.#lease
    const digest = this.#bundle?.digest ?? ''
    const lead = Math.floor(from / SEGMENT_PIECES)
    const reach = Math.min(last, (lead + WINDOW_SEGMENTS) * SEGMENT_PIECES - 1)
    const missing = new Set<number>()
    for (let index = from; index <= reach; index++) if (!this.#got.has(index)) missing.add(index)
    const segments = new Set([...missing].map((index) => Math.floor(index / SEGMENT_PIECES)))
    const fresh = [...missing].some((index) => !this.#missing.has(index))
    for (const segment of segments)
      if (!this.#segments.has(segment)) link.want(this.#listener, piecesTopic(root, digest, segment))
    if (segments.size > 0) {
      for (const segment of this.#segments)
        if (!segments.has(segment)) link.unwant(this.#listener, piecesTopic(root, digest, segment))
      this.#segments = segments
    }
    this.#missing = missing
    if (fresh) this.#askNow = true
    for (const index of this.#got.keys()) if (index < from - KEEP_PIECES || index > reach) this.#got.delete(index)
  }

  async #piece(index: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { askAgainMs = 2000, giveUpMs = 240_000 } = this.#options
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
      if (now - since >= giveUpMs) {
        if (failure !== undefined) throw brokerError(failure)
        throw doorErrors.TRANSPORT_STALLED(`${this.name} did not send byte ${index * PIECE_BYTES} for ${giveUpMs} ms`)
      }
      if (this.#askNow) {
        await this.#askWhatIsNew()
        asked = now
      } else if (now - asked >= pause) {
        await this.#ask(true)
        asked = now
        pause = Math.min(pause * 2, askAgainMs * 16)
      }
      await this.#waiter.next(Math.max(1, Math.min(asked + pause, since + giveUpMs) - now), signal)
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
    const again = this.#reconnected
    this.#reconnected = false
    await this.#ask(again)
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
    const ask: Ask = { v: 1, bundle: bundle.digest, pieces, ...(again ? { again: true as const } : {}) }
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
    if (topic !== piecesTopic(root, bundle.digest, Math.floor(index / SEGMENT_PIECES))) return false
    if (!this.#missing.has(index) || piece.data.length !== pieceLength(bundle.size, index)) return false
    this.#missing.delete(index)
    // A copy: the message's buffer may be a view of a larger one.
    this.#got.set(index, Uint8Array.from(piece.data))
    this.#waiter.ring()
    return true
  }

  #hearAnswer(payload: Uint8Array, retained: boolean): boolean {
    const answer = retained ? undefined : readAnswer(payload)
    if (answer === undefined) return false
    const { file } = this.#lease
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

  #fail(error: Error): void {
    this.#failed ??= error
    this.#waiter.ring()
  }
}

function askMessage({ root, device }: Lease, ask: Ask) {
  return { topic: deviceTopic(root, device, 'ask'), payload: encodeMessage(ask) }
}

/** What waiting does not mend. */
function throwIfFinal(failure: BrokerFailure | undefined): void {
  if (failure !== undefined && !failure.passing) throw brokerError(failure)
}

function unanswered({ link, file }: Lease): Error {
  if (link.failure !== undefined) return brokerError(link.failure)
  return doorErrors.TRANSPORT_STALLED(
    link.connected ? `nobody on ${link.name} answers for ${file}` : `${link.name} does not answer`,
    link.connected ? { next: "Start 'bistable serve' with this broker." } : {},
  )
}
