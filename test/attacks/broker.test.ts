import { createServer, type Socket } from 'node:net'
import { connectAsync, type MqttClient } from 'mqtt'
import { describe, expect, it, onTestFinished } from 'vitest'
import { encodeMessage, encodePiece, fromRanges, readAsk } from '../../broker/messages.ts'
import { PIECE_BYTES, pieceCount, pieceLength, piecesTopic } from '../../broker/topics.ts'
import { sha256 } from '../../bundle/digest.ts'
import { segmentOf } from '../../device/doors/window.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { signedRoot } from '../keys/helpers.ts'
import { embedded, publisher, publishFolder } from '../mqtt/tools.ts'
import { Device } from './device.ts'
import { forge } from './forge.ts'
import { attempt, refused } from './refused.ts'
import { announcing, freshness } from './web.ts'

// A broker in the hands of an attacker: no access list, and every message may be theirs. What the access list keeps
// from happening at all is in test/mqtt/mosquitto.test.ts.

const anchor = await signedRoot({}, [1, 2])
const CHANNEL = 'bistable/channels/stable.json'
const ANSWER = 'bistable/devices/device-1/answer'

/** A device that follows a channel on a broker, and somebody who may say everything there. */
async function site() {
  const quiet = new Set<string>()
  const broker = await embedded()
  const attacker: MqttClient = await connectAsync(broker.url.href, { clientId: 'attacker', reconnectPeriod: 0 })
  onTestFinished(() => void attacker.end(true))
  const origin = `mqtt://127.0.0.1:${broker.port}`
  // Somebody has to say that there is no assignment, or each look for one takes seconds.
  await attacker.subscribeAsync('bistable/devices/+/ask')
  attacker.on('message', (topic, payload) => {
    const ask = readAsk(payload)
    if (ask === undefined || !('file' in ask) || !/^(assignments|roots)/.test(ask.file) || quiet.has(ask.file)) return
    attacker.publish(topic.replace(/ask$/, 'answer'), encodeMessage({ v: 1, file: ask.file, missing: true }))
  })
  const device = await Device.make(scratch(), { anchor, channel: `${origin}/channels/stable.json` })
  const retain = (topic: string, payload: Uint8Array | string) =>
    attacker.publishAsync(topic, Buffer.from(payload), { qos: 1, retain: true })
  return { broker, attacker, origin, device, retain, quiet }
}

describe('the broker', () => {
  it('A26 spoofed broker topics: announcements, assignments, answers and pieces by somebody else move nothing', async () => {
    const { broker, attacker, origin, device, retain, quiet } = await site()
    const start = await device.fingerprint()
    for (const [what, payload, code] of [
      ['junk', noise(500), 'ENVELOPE_INVALID'],
      ['JSON', '{"type":"freshness"}', 'ENVELOPE_INVALID'],
      ['a statement by an unknown key', await freshness({}, [99]), 'SIGNATURE_UNKNOWN'],
      ['a statement for another channel', await freshness({ channel: 'beta' }), 'CHANNEL_WRONG'],
      ['more than a statement has', noise(16 * 1024 + 1), 'TRANSPORT_TOO_LARGE'],
    ] as const) {
      await retain(CHANNEL, payload)
      refused(what, await attempt(() => device.poll()), code)
    }
    quiet.add('assignments/device-1.json')
    await retain('bistable/assignments/device-1.json', noise(300))
    refused('an assignment of junk', await attempt(() => device.poll()), 'ENVELOPE_INVALID')
    await retain('bistable/assignments/device-1.json', '')

    // A publisher that answers for everything, with pieces of its own making.
    const bytes = await forge()
    const lies = noise(bytes.length)
    const digest = sha256(lies)
    attacker.on('message', (topic, payload) => {
      const answer = topic.replace(/ask$/, 'answer')
      const ask = readAsk(payload)
      if (ask === undefined) return
      if ('file' in ask) {
        if (!ask.file.startsWith('bundles/')) return
        attacker.publish(answer, encodeMessage({ v: 1, file: ask.file, size: lies.length, digest }))
        return
      }
      for (const index of fromRanges(ask.pieces, pieceCount(lies.length))) {
        const offset = index * PIECE_BYTES
        const data = lies.subarray(offset, offset + pieceLength(lies.length, index))
        attacker.publish(
          piecesTopic('bistable', digest, segmentOf(index)),
          encodePiece({ bundle: digest, offset, data }),
        )
      }
    })
    refused('pieces of noise', await attempt(() => device.install(`${origin}/bundles/x.bundle`)), 'BUNDLE_NOT_A_BUNDLE')
    expect(await device.fingerprint()).toBe(start)
    attacker.removeAllListeners('message')
    await attacker.unsubscribeAsync('bistable/devices/+/ask')

    // Somebody throws pieces of another file under the true one's name among the publisher's.
    const shelf = publishFolder(scratch(), { 'bundles/x.bundle': bytes })
    await publisher(shelf, broker.url)
    const truth = sha256(bytes)
    for (let index = 0; index < pieceCount(bytes.length); index++) {
      const offset = index * PIECE_BYTES
      const data = noise(pieceLength(bytes.length, index))
      await retain(piecesTopic('bistable', truth, segmentOf(index)), encodePiece({ bundle: truth, offset, data }))
    }
    await retain(ANSWER, encodeMessage({ v: 1, file: 'bundles/x.bundle', missing: true }))
    await retain(ANSWER, encodeMessage({ v: 1, bundle: truth, gone: true }))
    // All of that is retained, and what is retained there counts for nothing.
    expect(await attempt(() => device.install(`${origin}/bundles/x.bundle`))).toBe('accepted')
  })

  it('A27 replayed and retained messages: an old announcement is refused, junk on every topic is junk', async () => {
    const { broker, attacker, origin, device, retain } = await site()
    const bundle = await forge()
    const news = await announcing(bundle, anchor, 'bundles/x.bundle')
    const old = await freshness({ ...news, issued: '2026-11-20T00:00:00Z' })
    const fresh = await freshness({ ...news, issued: '2026-11-21T00:00:00Z' })
    await retain(CHANNEL, fresh)
    await device.poll()
    const seen = device.core.body.freshness
    await retain(CHANNEL, old)
    refused('replayed', await attempt(() => device.poll()), 'CHANNEL_REPLAYED')
    await device.restart()
    refused('replayed after a restart', await attempt(() => device.poll()), 'CHANNEL_REPLAYED')
    expect(device.core.body.freshness).toEqual(seen)

    // 10,000 messages while the device looks and installs.
    await retain(CHANNEL, fresh)
    await publisher(publishFolder(scratch(), { 'bundles/x.bundle': bundle }), broker.url)
    let over = false
    const flood = (async () => {
      for (let n = 0; n < 10_000 && !over; n++) {
        attacker.publish(ANSWER, `{"v":1,"file":"bundles/${n}.bundle","missing":true}`)
        attacker.publish(CHANNEL, noise(100))
        if (n % 500 === 0) await new Promise(setImmediate)
      }
    })()
    const code = await attempt(() => device.install(`${origin}/bundles/x.bundle`))
    over = true
    await flood
    // In time, or not at all: never anything else.
    expect(['accepted', 'TRANSPORT_WRONG_ANSWER', 'TRANSPORT_STALLED']).toContain(code)
    expect(device.core.body.state.name).toBe(code === 'accepted' ? 'armed' : 'idle')
  })

  it('A27 huge messages: 256 MB are announced, and the connection ends before they are taken', async () => {
    const sent = { bytes: 0, connections: 0 }
    const sockets = new Set<Socket>()
    // CONNACK, whatever is asked; then PUBLISH with the largest length there is, as fast as it is taken.
    const server = createServer((socket) => {
      sent.connections++
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.once('data', () => {
        socket.write(Buffer.from([0x20, 0x03, 0x00, 0x00, 0x00]))
        socket.write(Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f, 0x00, 0x01, 0x78]))
        const more = (): void => {
          while (!socket.destroyed && sent.bytes < 300e6) {
            sent.bytes += 65_536
            if (!socket.write(Buffer.alloc(65_536))) return void socket.once('drain', more)
          }
        }
        more()
      })
    })
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
    onTestFinished(async () => {
      for (const socket of sockets) socket.destroy()
      await new Promise((done) => server.close(done))
    })
    const address = server.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const device = await Device.make(scratch(), { anchor })
    const start = await device.fingerprint()
    const from = `mqtt://127.0.0.1:${port}/bundles/x.bundle`
    refused('256 MB', await attempt(() => device.install(from)), 'TRANSPORT_WRONG_ANSWER')
    // What the sockets of a connection took before they were closed.
    expect(sent.bytes / sent.connections).toBeLessThan(10e6)
    expect(sent.connections).toBeLessThan(20)
    expect(await device.fingerprint()).toBe(start)
  })

  it('A28 wildcards and endless topics: a name from outside never becomes a topic of its own', async () => {
    const { origin, device } = await site()
    for (const path of [
      'bundles/#',
      'bundles/+',
      'bundles/a%2fb',
      'bundles/%23',
      'bundles/a/b',
      '$SYS/x',
      'bundles/\u0000',
    ])
      refused(path, await attempt(() => device.install(`${origin}/${path}`)), 'TRANSPORT_ADDRESS')
  })
})
