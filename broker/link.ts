import { createHash } from 'node:crypto'
import {
  type BrokerTls,
  type Connection,
  type ConnectionClock,
  connectBroker,
  type Message,
  shownBroker,
} from './connection.ts'
import { BrokerFailure } from './failure.ts'

/**
 * A lasting tie to a broker: it connects again and again, subscribes to what is wanted, and hands messages to whoever
 * listens. Bounded everywhere: nothing is queued while there is no connection, and a broker that sends what nobody
 * asked for is left for a while.
 */

export interface Listener {
  /** @returns true when the message was of use; what nobody uses counts as a flood */
  message(topic: string, payload: Uint8Array, retained: boolean): boolean
  /** The broker has answered a subscription of this listener. */
  subscribed?(topic: string, granted: boolean): void
  up?(): void
  down?(why: BrokerFailure): void
}

export interface LinkOptions {
  /** The broker; its path is not looked at. */
  readonly url: URL
  /** Client identifier, and what spreads this client's tries among those of others. */
  readonly name: string
  /** Asked for at each connection. */
  readonly tls?: () => Promise<BrokerTls>
  readonly will?: Message
  /** Said before the link is closed on purpose, when no will is sent. */
  readonly farewell?: Message
  readonly clock: ConnectionClock
  readonly backoff?: Backoff
  /** Bytes of the largest packet that is read. */
  readonly maxPacket: number
  /** What may come unasked within `FLOOD_WINDOW_MS`; undefined: this client subscribes to what others say. */
  readonly flood?: { readonly messages: number; readonly bytes: number }
  readonly connectMs?: number
  readonly keepaliveSeconds?: number
}

/** All in milliseconds. The first try after a connection that was good comes within `firstMs`; then it doubles. */
export interface Backoff {
  readonly firstMs: number
  readonly maxMs: number
}

/** 10,000 devices of a broker that restarts come back at about 1000 a second, and of one that stays away at 80. */
export const DEFAULT_BACKOFF: Backoff = { firstMs: 10_000, maxMs: 120_000 }
const FLOOD_WINDOW_MS = 10_000
/** How long a broker may take to hear a goodbye. */
const FAREWELL_MS = 2000
/** A connection that lived so long was a good one. */
const GOOD_MS = 60_000
/** Topics in one SUBSCRIBE: as many as the strictest of the large services takes. */
const BATCH = 8

/** Where in the window of a pause this client's try lies: the same for one name and try, spread over names. Pure. */
export function pauseFor(name: string, failures: number, { firstMs, maxMs }: Backoff): number {
  const window = Math.min(maxMs, firstMs * 2 ** Math.min(failures, 20))
  const hash = createHash('sha256').update(`${name} ${failures}`).digest().readUInt32BE()
  return (hash / 2 ** 32) * window
}

export class BrokerLink {
  readonly name: string
  readonly #options: LinkOptions
  readonly #stop = new AbortController()
  #pause = new AbortController()
  readonly #listeners = new Set<Listener>()
  /** Who wants each topic. */
  readonly #wanted = new Map<string, Set<Listener>>()
  #connection: Connection | undefined
  #heardAt = 0
  #failure: BrokerFailure | undefined
  #version: 4 | 5 = 5
  #todo = { subscribe: new Set<string>(), unsubscribe: new Set<string>(), planned: false }
  readonly #leaving = new Map<string, Promise<void>>()
  readonly #entering = new Set<Promise<unknown>>()
  #unasked = { since: 0, messages: 0, bytes: 0 }
  readonly #running: Promise<void>

  constructor(options: LinkOptions) {
    this.#options = options
    this.name = shownBroker(options.url)
    this.#running = this.#run()
  }

  /** Milliseconds since anything came from the broker; 0 without a connection. */
  get silentMs(): number {
    return this.#connection === undefined ? 0 : this.#options.clock.now() - this.#heardAt
  }
  get connected(): boolean {
    return this.#connection !== undefined
  }
  /** Why the last connection, or the last try, failed; undefined while connected. */
  get failure(): BrokerFailure | undefined {
    return this.#failure
  }

  listen(listener: Listener): () => void {
    this.#listeners.add(listener)
    return () => {
      this.#listeners.delete(listener)
      for (const topic of [...this.#wanted.keys()]) this.unwant(listener, topic)
    }
  }

  /** Subscribes now, and on every later connection, until `unwant`. */
  want(listener: Listener, topic: string): void {
    const who = this.#wanted.get(topic) ?? new Set()
    this.#wanted.set(topic, who.add(listener))
    this.#todo.unsubscribe.delete(topic)
    // Also when somebody else has it: retained messages come with each new subscription.
    this.#todo.subscribe.add(topic)
    this.#plan()
  }

  unwant(listener: Listener, topic: string): void {
    const who = this.#wanted.get(topic)
    if (who?.delete(listener) !== true || who.size > 0) return
    this.#wanted.delete(topic)
    this.#todo.subscribe.delete(topic)
    this.#todo.unsubscribe.add(topic)
    this.#plan()
  }

  /** Sends on the present connection, after what was wanted so far. @returns false when it could not be sent */
  async publish(message: Message): Promise<boolean> {
    this.#flush()
    const connection = this.#connection
    if (connection === undefined) return false
    try {
      if (this.#entering.size > 0) await Promise.allSettled(this.#entering)
      await connection.publish(message)
      return true
    } catch {
      return false
    }
  }

  /** Ends the present connection, which seems to be dead; the next one follows after a pause. */
  renew(): void {
    this.#connection?.drop(new BrokerFailure('lost', `${this.name} has not been heard for ${this.silentMs} ms`))
  }

  /** Tries again at once when the last try failed in a way that only somebody's doing ends: it may have been done. */
  again(): void {
    if (this.#failure === undefined || this.#failure.passing) return
    this.#failure = undefined
    this.#pause.abort()
  }

  async close(): Promise<void> {
    const { farewell } = this.#options
    if (farewell !== undefined) await Promise.race([this.publish(farewell), this.#options.clock.sleep(FAREWELL_MS)])
    this.#stop.abort()
    this.#pause.abort()
    await this.#running
  }

  async #run(): Promise<void> {
    const { clock, backoff = DEFAULT_BACKOFF, name } = this.#options
    let failures = 0
    let otherVersion = false
    while (!this.#stop.signal.aborted) {
      const started = clock.now()
      const why = await this.#session()
      if (this.#stop.signal.aborted) return
      const met = clock.now() - started
      if (why.connected && met >= GOOD_MS) failures = 0
      // MQTT 5 is tried first; a broker that knows 3.1.1 only says so, or says nothing and closes.
      if (!why.connected && !otherVersion && !/^(refused|tls)$/.test(why.failure.trouble) && why.answered) {
        otherVersion = true
        this.#version = this.#version === 5 ? 4 : 5
        continue
      }
      otherVersion = false
      this.#failure = why.failure
      this.#pause = new AbortController()
      for (const listener of [...this.#listeners]) listener.down?.(why.failure)
      await clock.sleep(pauseFor(name, failures++, backoff), this.#pause.signal).catch(() => undefined)
    }
  }

  /** One connection from begin to end. `answered`: there was somebody at that address. */
  async #session(): Promise<{ failure: BrokerFailure; connected: boolean; answered: boolean }> {
    const { url, name, tls: readTls, will, maxPacket, clock, connectMs = 30_000, keepaliveSeconds = 60 } = this.#options
    let connection: Connection
    try {
      const tls = (await readTls?.().catch(unusable)) ?? {}
      const options = {
        url,
        clientId: name,
        clock,
        tls,
        will,
        maxPacket,
        connectMs,
        keepaliveSeconds,
        version: this.#version,
      }
      const onBytes = () => {
        this.#heardAt = this.#options.clock.now()
      }
      connection = await connectBroker({ ...options, onBytes, onMessage: (...message) => this.#hear(...message) })
    } catch (error) {
      const failure = error instanceof BrokerFailure ? error : new BrokerFailure('lost', String(error), error)
      return { failure, connected: false, answered: !/ECONN|ENOTFOUND|EAI_|EHOST|ENET|within/.test(failure.message) }
    }
    const goodbye = () => void connection.close()
    if (this.#stop.signal.aborted) goodbye()
    this.#stop.signal.addEventListener('abort', goodbye, { once: true })
    this.#connection = connection
    this.#failure = undefined
    this.#unasked = { since: this.#options.clock.now(), messages: 0, bytes: 0 }
    this.#todo = { subscribe: new Set(this.#wanted.keys()), unsubscribe: new Set(), planned: false }
    this.#flush()
    for (const listener of [...this.#listeners]) listener.up?.()
    const failure = await connection.ended
    this.#connection = undefined
    this.#stop.signal.removeEventListener('abort', goodbye)
    return { failure, connected: true, answered: true }
  }

  #plan(): void {
    if (this.#todo.planned || this.#connection === undefined) return
    this.#todo.planned = true
    queueMicrotask(() => this.#flush())
  }

  #flush(): void {
    const connection = this.#connection
    if (connection === undefined) return
    const { subscribe, unsubscribe } = this.#todo
    this.#todo = { subscribe: new Set(), unsubscribe: new Set(), planned: false }
    for (const topics of batches(unsubscribe)) {
      const left = connection
        .unsubscribe(topics)
        .catch(() => undefined)
        .finally(() => {
          for (const topic of topics) this.#leaving.delete(topic)
        })
      for (const topic of topics) this.#leaving.set(topic, left)
    }
    for (const topics of batches(subscribe)) {
      // A broker may work on both at once: what is being left is entered again only afterwards.
      const left = topics.flatMap((topic) => this.#leaving.get(topic) ?? [])
      const granted = left.length === 0 ? connection.subscribe(topics) : this.#afterwards(left, connection, topics)
      granted.then(
        (refused) => {
          for (const topic of topics)
            for (const listener of this.#wanted.get(topic) ?? []) listener.subscribed?.(topic, !refused.includes(topic))
        },
        // The connection is gone; the next one subscribes again.
        () => undefined,
      )
    }
  }

  async #afterwards(left: readonly Promise<void>[], connection: Connection, topics: readonly string[]) {
    const entered = Promise.all(left)
      .then(() => connection.subscribe(topics))
      .finally(() => this.#entering.delete(entered))
    this.#entering.add(entered)
    return await entered
  }

  #hear(topic: string, payload: Uint8Array, retained: boolean): void {
    let used = false
    for (const listener of this.#listeners) used = listener.message(topic, payload, retained) || used
    const { flood, clock } = this.#options
    if (used || flood === undefined) return
    const now = clock.now()
    if (now - this.#unasked.since > FLOOD_WINDOW_MS) this.#unasked = { since: now, messages: 0, bytes: 0 }
    this.#unasked.messages++
    this.#unasked.bytes += payload.length
    if (this.#unasked.messages <= flood.messages && this.#unasked.bytes <= flood.bytes) return
    const { messages, bytes } = this.#unasked
    this.#connection?.drop(
      new BrokerFailure('flood', `${this.name} sent ${messages} messages (${bytes} bytes) that nobody asked for`),
    )
  }
}

function unusable(error: unknown): never {
  throw new BrokerFailure('tls', error instanceof Error ? error.message : String(error), error)
}

function batches(topics: ReadonlySet<string>): string[][] {
  const all = [...topics]
  return Array.from({ length: Math.ceil(all.length / BATCH) }, (_, i) => all.slice(i * BATCH, (i + 1) * BATCH))
}
