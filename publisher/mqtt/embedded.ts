import { randomBytes, timingSafeEqual } from 'node:crypto'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { KiB } from '../../base/bytes.ts'
import { PacketGuard } from '../../broker/guard.ts'
import { isDeviceName } from '../../broker/topics.ts'
import { mayPublish, maySubscribe } from './access.ts'

/**
 * A broker inside `bistable serve`, for a bench or a small site: MQTT 3.1.1, nothing kept on disk. It knows no
 * passwords: a device is who its client identifier says, so listen on loopback or on a network of one's own. What a
 * device may do under that name is held as strictly as on Mosquitto.
 */

/** Bytes of the largest packet that a device may send: a state report and its topic. */
const MAX_PACKET = 20 * KiB
const MAX_CONNECTIONS = 2000
/** Messages that one device may send in a second; more end its connection. */
const MAX_RATE = 500
/** A client that takes nothing for so long is dropped: others wait behind it. Milliseconds. */
const DRAIN_MS = 5000
const ROOT = 'bistable'

export interface EmbeddedBroker {
  readonly host: string
  readonly port: number
  /** How the publisher itself connects: an address with a password that no one else knows. */
  readonly url: URL
  readonly connected: () => number
  close(): Promise<void>
}

/** Starts listening. @throws the system's error when the port is taken */
export async function startBroker(host: string, port: number, say: (line: string) => void): Promise<EmbeddedBroker> {
  const { Aedes } = await import('aedes')
  const password = randomBytes(24).toString('hex')
  const publishers = new WeakSet<object>()
  const rates = new WeakMap<object, { second: number; messages: number }>()
  const broker = await Aedes.createBroker({
    drainTimeout: DRAIN_MS,
    connectTimeout: 10_000,
    keepaliveLimit: 600,
    queueLimit: 100,
    maxInflightInbound: 20,
    maxTopicLevels: 10,
    maxClientsIdLength: 64,
    authenticate: (client, user, given, done) => {
      const isPublisher = user === 'publisher' && given !== undefined && same(given, password)
      if (isPublisher) publishers.add(client)
      const refusal = Object.assign(new Error('a client identifier like a device name is wanted'), { returnCode: 4 })
      if (isPublisher || (user !== 'publisher' && isDeviceName(client.id))) done(null, true)
      else done(refusal, false)
    },
    authorizePublish: (client, packet, done) => {
      if (client === null || publishers.has(client)) return done(null)
      if (!withinRate(rates, client)) {
        say(`mqtt: ${client.id} sends more than ${MAX_RATE} messages a second and is dropped`)
        client.close()
        return done(new Error('too many messages'))
      }
      done(mayPublish(ROOT, client.id, packet.topic) ? null : new Error('not a topic of this device'))
    },
    authorizeSubscribe: (client, subscription, done) => {
      const allowed = publishers.has(client) || maySubscribe(ROOT, client.id, subscription.topic)
      done(null, allowed ? subscription : null)
    },
  })
  // Failures of single clients are theirs; Node ends a process whose emitter has nobody to hear an "error".
  broker.on('clientError', (client, error) => say(`mqtt: ${client.id}: ${error.message}`))
  broker.on('connectionError', () => undefined)
  const server = createServer({ noDelay: true }, (socket) => {
    guarded(socket)
    broker.handle(socket)
  })
  server.maxConnections = MAX_CONNECTIONS
  try {
    await listening(server, host, port)
  } catch (error) {
    await new Promise<void>((resolve) => broker.close(() => resolve()))
    throw error
  }
  const bound = (server.address() as AddressInfo).port
  const own = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '[::1]' : host.includes(':') ? `[${host}]` : host
  return {
    host,
    port: bound,
    url: new URL(`mqtt://publisher:${password}@${own}:${bound}`),
    connected: () => broker.connectedClients,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      await new Promise<void>((resolve) => broker.close(() => resolve()))
      await closed
    },
  }
}

/** Ends a connection that announces a packet no device has reason to send, before a byte of it is kept. */
function guarded(socket: Socket): void {
  const guard = new PacketGuard(MAX_PACKET + PUBLISHER_SPARE)
  socket.on('data', (bytes: Buffer) => {
    if (guard.check(bytes) !== undefined) socket.destroy()
  })
  socket.on('error', () => undefined)
}

/** The publisher is a client too, and sends pieces of 32 KiB. */
const PUBLISHER_SPARE = 24 * KiB

function withinRate(rates: WeakMap<object, { second: number; messages: number }>, client: object): boolean {
  const second = Math.floor(performance.now() / 1000)
  const rate = rates.get(client)
  if (rate?.second !== second) {
    rates.set(client, { second, messages: 1 })
    return true
  }
  return ++rate.messages <= MAX_RATE
}

function same(given: Buffer, password: string): boolean {
  const wanted = Buffer.from(password)
  return given.length === wanted.length && timingSafeEqual(given, wanted)
}

function listening(server: Server, host: string, port: number): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, resolve)
  })
}
