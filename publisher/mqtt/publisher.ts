import { randomBytes } from 'node:crypto'
import { type FSWatcher, watch } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB } from '../../base/bytes.ts'
import type { BrokerTls } from '../../broker/connection.ts'
import { type Backoff, BrokerLink } from '../../broker/link.ts'
import {
  type Answer,
  encodeMessage,
  encodePiece,
  fromRanges,
  readAsk,
  readLink,
  readProgress,
  readState,
} from '../../broker/messages.ts'
import {
  deviceTopic,
  FOLDERS,
  PIECE_BYTES,
  pieceCount,
  piecesTopic,
  readDeviceTopic,
  rootOf,
  SEGMENT_PIECES,
} from '../../broker/topics.ts'
import { Catalog } from './catalog.ts'
import { Fleet, type Report, type Sending } from './fleet.ts'
import { ReportLog } from './reports.ts'
import { type Job, Schedule } from './schedule.ts'

/** A publish folder on a broker: announces what is in it, answers devices, sends pieces, keeps what devices report. */

export interface MqttPublisherOptions {
  readonly folder: string
  /** mqtt(s)://[USER:PASSWORD@]BROKER[/PREFIX] */
  readonly broker: URL
  readonly tls?: () => Promise<BrokerTls>
  /** Where device reports are kept; undefined: nowhere. */
  readonly reports?: string
  readonly gatherMs?: number
  readonly backoff?: Backoff
  readonly say: (line: string) => void
}

export interface SentCounts {
  /** Messages with pieces, and their data bytes. */
  pieces: number
  bytes: number
}

const MAX_PACKET = 64 * KiB
/** How long one device may keep the others waiting before its pace counts. */
export const GATHER_MS = 10_000
/** Pieces on their way to the broker's socket. */
const IN_FLIGHT = 4
const SCAN_MS = 10_000
const FLUSH_MS = 1000
/** Questions and reports that count from one device in ten seconds; an honest one asks once for each 256 KiB. */
const MAX_WORDS = 2000
const WORDS_MS = 10_000
const MAX_SPEAKERS = 20_000

const clock = {
  now: () => performance.now(),
  sleep: async (ms: number, signal?: AbortSignal) => {
    await sleep(ms, undefined, signal === undefined ? {} : { signal })
  },
}

export class MqttPublisher {
  readonly fleet = new Fleet()
  readonly sent: SentCounts = { pieces: 0, bytes: 0 }
  readonly #options: MqttPublisherOptions
  readonly #root: string
  readonly #catalog: Catalog
  readonly #schedule: Schedule
  readonly #link: BrokerLink
  readonly #log: ReportLog | undefined
  readonly #stop = new AbortController()
  readonly #ended: Promise<unknown>
  readonly #words = new Map<string, number>()
  /** Numbers of the pieces that the broker's socket has not taken yet. */
  readonly #flying = new Set<number>()
  /** Marks of one that ran before mean nothing. */
  readonly #run = randomBytes(6).toString('hex')
  #wake: () => void = () => undefined
  #rescan: () => void = () => undefined

  private constructor(options: MqttPublisherOptions, root: string, catalog: Catalog) {
    this.#options = options
    this.#root = root
    this.#catalog = catalog
    this.#schedule = new Schedule({ gatherMs: options.gatherMs ?? GATHER_MS, present: () => this.fleet.online })
    this.#log = options.reports === undefined ? undefined : new ReportLog(options.reports)
    const { broker, tls, backoff } = options
    this.#link = new BrokerLink({
      url: broker,
      name: 'bistable-publisher',
      clock,
      maxPacket: MAX_PACKET,
      backoff: backoff ?? { firstMs: 1000, maxMs: 30_000 },
      ...(tls === undefined ? {} : { tls }),
    })
    const listener = {
      message: (topic: string, payload: Uint8Array, retained: boolean) => this.#hear(topic, payload, retained),
      subscribed: (topic: string, granted: boolean) => {
        if (!granted) options.say(`mqtt: ${this.#link.name} refuses the subscription to ${topic}`)
      },
      up: () => {
        options.say(`mqtt: connected to ${this.#link.name}`)
        // A broker that restarted may have forgotten everything.
        for (const [file, { content }] of catalog.small) this.#announce(file, content)
        this.#wake()
      },
      down: (why: Error) => {
        options.say(`mqtt: ${why.message}`)
        this.#schedule.clear()
      },
    }
    this.#link.listen(listener)
    for (const leaf of ['ask', 'link', 'state', 'progress']) this.#link.want(listener, `${root}/devices/+/${leaf}`)
    this.#ended = Promise.all([this.#sendLoop(), this.#scanLoop(), this.#tidyLoop()])
  }

  /** Looks at the folder once, then connects; connecting and everything after it goes on by itself. */
  static async start(options: MqttPublisherOptions): Promise<MqttPublisher> {
    const root = rootOf(options.broker)
    if (root === undefined) throw new TypeError(`no broker's address: ${options.broker.protocol}`)
    const catalog = new Catalog(options.folder, (line) => options.say(`mqtt: ${line}`))
    await catalog.scan()
    return new MqttPublisher(options, root, catalog)
  }

  get connected(): boolean {
    return this.#link.connected
  }
  /** Why there is no connection. */
  get failure(): Error | undefined {
    return this.#link.failure
  }

  /** What went out, and how many devices wait for more. */
  get sending(): Sending {
    return { ...this.sent, waiting: this.#schedule.waiting }
  }

  async close(): Promise<void> {
    this.#stop.abort()
    this.#wake()
    this.#rescan()
    await this.#ended
    await this.#link.close()
    await this.#log?.flush().catch(() => undefined)
    await this.#catalog.close()
  }

  #announce(file: string, content: Uint8Array | undefined): void {
    const payload = content ?? new Uint8Array(0)
    void this.#link.publish({ topic: `${this.#root}/${file}`, payload, retain: true, qos: 1 })
  }

  #hear(topic: string, payload: Uint8Array, retained: boolean): boolean {
    const found = readDeviceTopic(this.#root, topic)
    if (found === undefined || !this.#mayspeak(found.device)) return false
    const { device, leaf } = found
    if (leaf === 'ask') return !retained && this.#answer(device, payload)
    const said = reportOf(leaf, payload)
    if (said === undefined) return false
    if (said.leaf === 'link' && !said.report.online) this.#schedule.forget(device)
    const at = new Date()
    if (this.fleet.hear(device, said, at.getTime()))
      this.#log?.add({ at: at.toISOString(), device, [said.leaf]: said.report })
    return true
  }

  #answer(device: string, payload: Uint8Array): boolean {
    const ask = readAsk(payload)
    if (ask === undefined) return false
    if ('file' in ask) {
      const found = this.#catalog.find(ask.file)
      const { file } = ask
      const of = found === undefined ? undefined : this.#catalog.bundle(found.digest)
      if (of !== undefined) this.#schedule.expect(device, of.digest, clock.now())
      this.#reply(
        device,
        found === undefined ? { v: 1, file, missing: true } : { v: 1, file, size: found.size, digest: found.digest },
      )
      return true
    }
    const bundle = this.#catalog.bundle(ask.bundle)
    if (bundle === undefined) {
      this.#schedule.forget(device)
      if (ask.pieces.length > 0) this.#reply(device, { v: 1, bundle: ask.bundle, gone: true })
      return true
    }
    const pieces = fromRanges(ask.pieces, pieceCount(bundle.size))
    const heard = { again: ask.again === true, mark: this.#readMark(ask.mark) }
    if (this.#schedule.ask(device, bundle.digest, pieces, heard, clock.now()))
      this.#reply(device, { v: 1, bundle: bundle.digest, mark: this.#mark() })
    this.#wake()
    return true
  }

  /** All pieces up to this number were said before what is said now. */
  #mark(): string {
    return `${this.#run}.${Math.min(this.#schedule.sent, ...[...this.#flying].map((number) => number - 1))}`
  }

  #readMark(mark = ''): number {
    const [run, number] = mark.split('.')
    return run === this.#run && /^[0-9]{1,15}$/.test(number ?? '') ? Number(number) : 0
  }

  #reply(device: string, answer: Answer): void {
    void this.#link.publish({ topic: deviceTopic(this.#root, device, 'answer'), payload: encodeMessage(answer) })
  }

  /** One device cannot keep the publisher from hearing the others. */
  #mayspeak(device: string): boolean {
    const words = (this.#words.get(device) ?? 0) + 1
    if (this.#words.size < MAX_SPEAKERS || this.#words.has(device)) this.#words.set(device, words)
    return words <= MAX_WORDS
  }

  async #sendLoop(): Promise<void> {
    const flights = new Set<Promise<void>>()
    while (!this.#stop.signal.aborted) {
      const rung = new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      const next = this.#link.connected ? this.#schedule.next(clock.now()) : { waitMs: 1000 }
      if ('waitMs' in next) {
        const timer = new AbortController()
        const pause = clock.sleep(next.waitMs, timer.signal).catch(() => undefined)
        await Promise.race([rung, pause])
        timer.abort()
        continue
      }
      const flight = this.#send(next).finally(() => flights.delete(flight))
      flights.add(flight)
      if (flights.size >= IN_FLIGHT) await Promise.race(flights)
    }
    await Promise.all(flights)
  }

  async #send({ bundle: digest, index, number, devices }: Job): Promise<void> {
    const bundle = this.#catalog.bundle(digest)
    if (bundle === undefined) return
    this.#flying.add(number)
    try {
      const data = await this.#catalog.piece(bundle, index)
      const topic = piecesTopic(this.#root, digest, Math.floor(index / SEGMENT_PIECES))
      this.sent.pieces++
      this.sent.bytes += data.length
      await this.#link.publish({ topic, payload: encodePiece({ bundle: digest, offset: index * PIECE_BYTES, data }) })
    } catch (error) {
      this.#options.say(`mqtt: ${bundle.file}: ${error instanceof Error ? error.message : error}`)
      // They need not wait for what cannot be read any more.
      for (const device of devices) this.#reply(device, { v: 1, bundle: digest, gone: true })
    } finally {
      this.#flying.delete(number)
    }
  }

  /** Watches the folder; looks by itself now and then, for file systems that tell nothing. */
  async #scanLoop(): Promise<void> {
    const { folder } = this.#options
    const watchers = new Map<string, FSWatcher>()
    const watchAll = (): void => {
      for (const place of [folder, ...FOLDERS.map((name) => join(folder, name))]) {
        if (watchers.has(place)) continue
        try {
          const watcher = watch(place, () => this.#rescan())
          watcher.on('error', () => {
            watcher.close()
            watchers.delete(place)
          })
          watchers.set(place, watcher)
        } catch {
          // Not there yet, or no more watches: it is looked at every ten seconds.
        }
      }
    }
    while (!this.#stop.signal.aborted) {
      const rung = new Promise<void>((resolve) => {
        this.#rescan = resolve
      })
      watchAll()
      try {
        for (const { file, content } of await this.#catalog.scan(this.#stop.signal)) {
          this.#announce(file, content)
          this.#options.say(content === undefined ? `mqtt: withdrawn ${file}` : `mqtt: announced ${file}`)
        }
      } catch (error) {
        if (!this.#stop.signal.aborted)
          this.#options.say(`mqtt: ${folder}: ${error instanceof Error ? error.message : error}`)
      }
      const timer = new AbortController()
      await Promise.race([rung, clock.sleep(SCAN_MS, timer.signal).catch(() => undefined)])
      timer.abort()
      // One change rarely comes alone.
      await clock.sleep(30, this.#stop.signal).catch(() => undefined)
    }
    for (const watcher of watchers.values()) watcher.close()
  }

  async #tidyLoop(): Promise<void> {
    let words = clock.now()
    while (!this.#stop.signal.aborted) {
      await clock.sleep(FLUSH_MS, this.#stop.signal).catch(() => undefined)
      if (clock.now() - words >= WORDS_MS) {
        this.#words.clear()
        words = clock.now()
      }
      await this.#log?.flush().catch((error: unknown) => {
        this.#options.say(`reports: ${error instanceof Error ? error.message : error}`)
      })
    }
  }
}

function reportOf(leaf: string, payload: Uint8Array): Report | undefined {
  if (leaf === 'link') return wrap('link', readLink(payload))
  if (leaf === 'state') return wrap('state', readState(payload))
  return leaf === 'progress' ? wrap('progress', readProgress(payload)) : undefined
}

function wrap<L extends Report['leaf']>(leaf: L, report: (Report & { leaf: L })['report'] | undefined) {
  return report === undefined ? undefined : ({ leaf, report } as Report)
}
