import { createServer, type Socket } from 'node:net'
import { connectAsync } from 'mqtt'
import { onTestFinished } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import { encodeMessage, encodePiece, fromRanges, readAsk } from '../../broker/messages.ts'
import { PIECE_BYTES, pieceCount, pieceLength, piecesTopic } from '../../broker/topics.ts'
import { sha256 } from '../../bundle/digest.ts'
import { openMqttDoor } from '../../device/doors/mqtt.ts'
import { segmentOf } from '../../device/doors/window.ts'
import { brokers, embedded } from '../mqtt/tools.ts'
import type { Medium } from './medium.ts'

/**
 * A bundle behind a broker, for the tests that hold all doors equal: a real broker, and a publisher that fails as the
 * medium says. Links break where the device's connection runs through a socket of ours.
 */
export async function openOnBroker(medium: Medium, { stallMs }: { readonly stallMs: number }): Promise<ByteSource> {
  const broker = await embedded()
  const line = await throughSocket(broker.port, medium)
  const publisher = await connectAsync(broker.url.href, { reconnectPeriod: 0 })
  onTestFinished(async () => {
    await publisher.endAsync(true)
  })
  const digest = sha256(medium.bytes)
  let asks = 0
  await publisher.subscribeAsync('bistable/devices/+/ask')
  publisher.on('message', (topic, payload) => {
    const answer = topic.replace(/ask$/, 'answer')
    const ask = readAsk(payload)
    if (ask === undefined) throw new Error(`not a question: ${payload}`)
    if ('file' in ask) publisher.publish(answer, encodeMessage({ v: 1, file: ask.file, size: medium.size, digest }))
    else {
      const gone = () => void publisher.publish(answer, encodeMessage({ v: 1, bundle: digest, gone: true }))
      if (medium.changed) return gone()
      const latest = ++asks
      const send = async () => {
        for (const index of fromRanges(ask.pieces, pieceCount(medium.size))) {
          if (latest !== asks) return
          const data = piece(medium, index)
          if (data === 'end') return gone()
          if (data === 'stall') return
          if (data === 'break') return line.cut()
          publishPiece(index, data)
          await new Promise(setImmediate)
        }
      }
      void send()
    }
  })
  const publishPiece = (index: number, data: Uint8Array): void => {
    const offset = index * PIECE_BYTES
    const topic = piecesTopic('bistable', digest, segmentOf(index))
    publisher.publish(topic, encodePiece({ bundle: digest as Sha256, offset, data }))
    // What nobody asked for: too long, behind the end, of another file.
    if (medium.fault.kind !== 'late') return
    publisher.publish(topic, encodePiece({ bundle: digest, offset: offset + PIECE_BYTES, data: Buffer.alloc(70) }))
    publisher.publish(topic, encodePiece({ bundle: digest, offset: offset + 1, data }))
    publisher.publish(topic, encodePiece({ bundle: sha256(data), offset, data }))
  }
  const ties = brokers('device-1', { backoff: { firstMs: 1, maxMs: 4 } })
  const address = `mqtt://127.0.0.1:${line.port}/bundles/a.bundle`
  return openMqttDoor(ties, address, {
    giveUpMs: stallMs,
    askAgainMs: Math.min(stallMs, 500),
    answerMs: 5000,
    tries: 5,
  })
}

/** One whole piece as the medium gives it, or what happens instead. */
function piece(medium: Medium, index: number): Uint8Array | 'end' | 'stall' | 'break' {
  const start = index * PIECE_BYTES
  const end = start + pieceLength(medium.size, index)
  const parts: Uint8Array[] = []
  for (let at = start; at < end; ) {
    const part = medium.next(at, end)
    if (typeof part === 'string') return part
    parts.push(part)
    at += part.length
  }
  return Buffer.concat(parts)
}

/** A relay in front of the broker that can be cut, and that lets nobody in while the medium is gone. */
async function throughSocket(port: number, medium: Medium) {
  const { connect } = await import('node:net')
  const open = new Set<Socket>()
  const server = createServer((socket) => {
    if (!medium.reachable) return void socket.destroy()
    const far = connect(port, '127.0.0.1')
    for (const one of [socket, far]) {
      open.add(one)
      one.on('error', () => undefined)
      one.on('close', () => {
        open.delete(one)
        far.destroy()
        socket.destroy()
      })
    }
    socket.pipe(far).pipe(socket)
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const cut = (): void => {
    for (const socket of open) socket.destroy()
  }
  onTestFinished(async () => {
    cut()
    await new Promise((done) => server.close(done))
  })
  const address = server.address()
  if (typeof address !== 'object' || address === null) throw new Error('no port')
  return { port: address.port, cut }
}
