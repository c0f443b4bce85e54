import { connect as connectTcp, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import type { IClientOptions, MqttClient } from 'mqtt'
import { systemCode } from '../base/errors.ts'
import { isTlsFailure, tlsWords } from '../base/tls-failure.ts'
import { BrokerFailure } from './failure.ts'
import { PacketGuard } from './guard.ts'

/** One connection to a broker, from the TCP handshake to its end. Nothing is tried twice here: see link.ts. */

/** PEM texts. There is no way to switch the check of the broker's certificate off. */
export interface BrokerTls {
  /** Authorities that count instead of the system's. */
  readonly ca?: string
  /** The client's certificate and its key. */
  readonly cert?: string
  readonly key?: string
}

export interface Message {
  readonly topic: string
  readonly payload: Uint8Array
  readonly retain?: boolean
  /** 0: may be lost; 1: the broker says that it has it. */
  readonly qos?: 0 | 1
}

/** Waiting for a broker, on whatever clock the client has. */
export interface ConnectionClock {
  /** Milliseconds, monotonic. */
  now(): number
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export interface ConnectionOptions {
  readonly clock: ConnectionClock
  /** mqtt:// or mqtts://; user name and password are taken from it. */
  readonly url: URL
  readonly clientId: string
  readonly tls: BrokerTls
  readonly will: Message | undefined
  readonly version: 4 | 5
  /** Milliseconds until the broker has accepted the client. */
  readonly connectMs: number
  readonly keepaliveSeconds: number
  /** Bytes of the largest packet that is read. */
  readonly maxPacket: number
  /** Something came, whatever it is. */
  readonly onBytes: () => void
  readonly onMessage: (topic: string, payload: Uint8Array, retained: boolean) => void
}

export interface Connection {
  /** @returns the topics that the broker refuses. Rejects with a BrokerFailure when the connection ends first. */
  subscribe(topics: readonly string[]): Promise<readonly string[]>
  unsubscribe(topics: readonly string[]): Promise<void>
  /** Resolves when the socket takes more (QoS 0), or the broker has the message (QoS 1). */
  publish(message: Message): Promise<void>
  /** Resolves when the connection is over, whoever ended it. */
  readonly ended: Promise<BrokerFailure>
  /** Says goodbye, so that no will is sent. Never fails. */
  close(): Promise<void>
  /** Ends it at once: the will is sent. */
  drop(why: BrokerFailure): void
}

/** "mqtts://broker:8883", for messages: without user name and password. */
export const shownBroker = (url: URL): string => `${url.protocol}//${url.host}`

/** @throws BrokerFailure */
export async function connectBroker(options: ConnectionOptions): Promise<Connection> {
  const { url } = options
  const name = shownBroker(url)
  const started = options.clock.now()
  const socket = await openSocket(options)
  const guard = new PacketGuard(options.maxPacket)
  let why: BrokerFailure | undefined
  const drop = (failure: BrokerFailure): void => {
    why ??= failure
    socket.destroy()
  }
  // First in line: what the parser would keep is never handed to it.
  socket.on('data', (bytes: Buffer) => {
    options.onBytes()
    const announced = guard.check(bytes)
    if (announced === undefined) return
    drop(
      new BrokerFailure(
        'flood',
        `${name} sends a message of ${announced} bytes, at most ${options.maxPacket} are read`,
      ),
    )
  })
  const { MqttClient } = await import('mqtt')
  const client = new MqttClient(() => socket as never, clientOptions(options))
  const ended = new Promise<BrokerFailure>((resolve) => {
    client.on('error', (error) => {
      why ??= new BrokerFailure('lost', `${name}: ${error.message}`, error)
      socket.destroy()
    })
    client.on('disconnect', (packet) => {
      why ??= new BrokerFailure('lost', `${name} ends the connection (${packet.reasonCode ?? 0})`)
    })
    socket.on('close', () => resolve(why ?? new BrokerFailure('lost', `${name} closed the connection`)))
  })
  client.on('message', (topic, payload, packet) => {
    if (why === undefined) options.onMessage(topic, payload, packet.retain)
  })
  const left = Math.max(1, options.connectMs - (options.clock.now() - started))
  const overdue = afterwards(options.clock, left, () =>
    drop(new BrokerFailure('lost', `${name} does not answer as a broker does`)),
  )
  try {
    await accepted(client, ended, name)
  } finally {
    overdue()
  }
  return over(client, ended, drop, options.clock)
}

/** Does something after so many milliseconds. @returns what takes it back */
function afterwards(clock: ConnectionClock, ms: number, work: () => void): () => void {
  const stop = new AbortController()
  clock.sleep(ms, stop.signal).then(work, () => undefined)
  return () => stop.abort()
}

function clientOptions({ url, clientId, will, version, connectMs, keepaliveSeconds, maxPacket }: ConnectionOptions) {
  const credentials: IClientOptions = {}
  if (url.username !== '') credentials.username = decodeURIComponent(url.username)
  if (url.password !== '') credentials.password = decodeURIComponent(url.password)
  const made: IClientOptions = {
    ...credentials,
    clientId,
    protocolId: 'MQTT',
    protocolVersion: version,
    clean: true,
    keepalive: keepaliveSeconds,
    connectTimeout: connectMs,
    // Trying again, subscriptions and what waits for them are link.ts's.
    reconnectPeriod: 0,
    resubscribe: false,
    queueQoSZero: false,
    ...(version === 5 ? { properties: { maximumPacketSize: maxPacket, receiveMaximum: 64 } } : {}),
  }
  if (will !== undefined)
    made.will = {
      topic: will.topic,
      payload: Buffer.from(will.payload),
      qos: will.qos ?? 1,
      retain: will.retain ?? true,
    }
  return made
}

async function accepted(client: MqttClient, ended: Promise<BrokerFailure>, name: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    client.once('connect', () => resolve())
    client.once('error', (error) => reject(refusal(name, error)))
    ended.then(reject)
  })
}

/** A CONNACK that says no, or something that is none. */
function refusal(name: string, error: Error): BrokerFailure {
  const code = 'code' in error && typeof error.code === 'number' ? error.code : undefined
  // 4, 5: MQTT 3.1.1, table 3.1; 0x86, 0x87, 0x8a, 0x8c: MQTT 5, section 3.2.2.2.
  if (code !== undefined && [4, 5, 0x86, 0x87, 0x8a, 0x8c].includes(code))
    return new BrokerFailure('refused', `${name} does not let this client in: ${error.message}`, error)
  if (code === 1 || code === 0x84)
    return new BrokerFailure('wrong-answer', `${name} does not speak this version of MQTT`, error)
  return new BrokerFailure('lost', `${name}: ${error.message}`, error)
}

function over(
  client: MqttClient,
  ended: Promise<BrokerFailure>,
  drop: (why: BrokerFailure) => void,
  clock: ConnectionClock,
): Connection {
  const lost = ended.then((why) => {
    throw why
  })
  lost.catch(() => undefined)
  return {
    ended,
    drop,
    subscribe: async (topics) => {
      const granted = await Promise.race([
        lost,
        new Promise<readonly number[]>((resolve, reject) => {
          client.subscribe([...topics], { qos: 0 }, (error, grants, packet) => {
            const codes = packet?.granted ?? grants?.map(({ qos }) => qos)
            if (codes === undefined) reject(new BrokerFailure('lost', error?.message ?? 'no subscription', error))
            else resolve(codes.map(Number))
          })
        }),
      ])
      return topics.filter((_, i) => ((granted[i] ?? 0x80) & 0x80) !== 0)
    },
    unsubscribe: async (topics) => {
      await Promise.race([lost, client.unsubscribeAsync([...topics])])
    },
    publish: async ({ topic, payload, retain = false, qos = 0 }) => {
      await Promise.race([lost, client.publishAsync(topic, Buffer.from(payload), { qos, retain })])
    },
    close: async () => {
      // A broker that does not close its side keeps nobody waiting.
      const done = new Promise<void>((resolve) => client.end(false, {}, () => resolve()))
      const overdue = afterwards(clock, 2000, () => drop(new BrokerFailure('lost', 'closed')))
      await Promise.race([done, ended])
      overdue()
      drop(new BrokerFailure('lost', 'closed'))
    },
  }
}

/** TCP, and TLS where the address says so; the certificate is checked before MQTT says a word. */
async function openSocket({ url, tls, connectMs, clock }: ConnectionOptions): Promise<Socket> {
  const name = shownBroker(url)
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const secure = url.protocol === 'mqtts:'
  const port = url.port === '' ? (secure ? 8883 : 1883) : Number(url.port)
  // A name in the certificate is asked for also when it is an address: Node compares it with the certificate's.
  // Said here, so that NODE_TLS_REJECT_UNAUTHORIZED in the environment is no insecure switch.
  const strict = { ...tls, rejectUnauthorized: true, minVersion: 'TLSv1.2' } as const
  const socket = secure
    ? connectTls({ host, port, ...(isName(host) ? { servername: host } : {}), ...strict })
    : connectTcp({ host, port })
  socket.setNoDelay(true)
  const overdue = afterwards(clock, connectMs, () => socket.destroy(new Error(`no connection within ${connectMs} ms`)))
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once(secure ? 'secureConnect' : 'connect', resolve)
      socket.once('error', reject)
      socket.once('close', () => reject(new Error('closed')))
    })
    // Later failures end the connection: its end is what is told.
    socket.on('error', () => undefined)
    return socket
  } catch (error) {
    socket.destroy()
    const code = systemCode(error) ?? ''
    const sentence = error instanceof Error ? error.message : String(error)
    if (isTlsFailure(code)) throw new BrokerFailure('tls', `${name}: ${tlsWords(code, new Date())}`, error)
    throw new BrokerFailure('lost', `${name}: ${code === '' ? sentence : code}`, error)
  } finally {
    overdue()
  }
}

const isName = (host: string): boolean => !/^[0-9.]+$|:/.test(host)
