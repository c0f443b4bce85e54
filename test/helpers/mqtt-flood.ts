import { once } from 'node:events'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'

/**
 * A client that sends messages as fast as a broker takes them, which no client library does: packets of MQTT 3.1.1 made
 * ahead and written in large pieces.
 */

/** Messages in one write. */
const BATCH = 500

export interface FloodFigures {
  readonly messages: number
  /** From the first message until the broker had worked through the last one. */
  readonly seconds: number
}

/** A string or payload behind its length (MQTT 3.1.1, 1.5.3). */
function counted(bytes: Uint8Array | string): Buffer {
  const content = Buffer.from(bytes)
  const length = Buffer.alloc(2)
  length.writeUInt16BE(content.length)
  return Buffer.concat([length, content])
}

/** A packet of this type with its remaining length in front (MQTT 3.1.1, 2.2.3). */
function packet(type: number, body: Buffer): Buffer {
  const head = [type]
  for (let rest = body.length; ; rest >>>= 7) {
    head.push((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0))
    if (rest <= 0x7f) break
  }
  return Buffer.concat([Buffer.from(head), body])
}

export const publishPacket = (topic: string, payload: string, retain = false): Buffer =>
  packet(retain ? 0x31 : 0x30, Buffer.concat([counted(topic), Buffer.from(payload)]))

/** Connects and waits until the broker lets it in. */
export async function floodClient(options: ConnectionOptions, name: string): Promise<TLSSocket> {
  const socket = connect(options)
  socket.on('error', () => undefined)
  await once(socket, 'secureConnect')
  const keepAlive = Buffer.from([0, 60])
  socket.write(packet(0x10, Buffer.concat([counted('MQTT'), Buffer.from([4, 2]), keepAlive, counted(name)])))
  const [answer] = (await once(socket, 'data')) as [Buffer]
  if (answer[0] !== 0x20 || answer[3] !== 0) throw new Error(`the broker refuses: ${answer.toString('hex')}`)
  return socket
}

/**
 * Sends so many messages, and waits until the broker has answered a ping that was sent behind them: it works through
 * what one client sends in order.
 */
export async function flood(socket: TLSSocket, messages: number, make: (n: number) => Buffer): Promise<FloodFigures> {
  const started = performance.now()
  for (let sent = 0; sent < messages; sent += BATCH) {
    const batch = Array.from({ length: Math.min(BATCH, messages - sent) }, (_, i) => make(sent + i))
    // Called when the bytes are on their way, or the connection is over.
    await new Promise<void>((taken) => socket.write(Buffer.concat(batch), () => taken()))
    if (socket.destroyed) throw new Error(`the connection ended behind ${sent} messages`)
  }
  socket.write(packet(0xc0, Buffer.alloc(0)))
  const [answer] = (await once(socket, 'data')) as [Buffer]
  if (answer[0] !== 0xd0) throw new Error(`the broker says ${answer.toString('hex')}`)
  return { messages, seconds: (performance.now() - started) / 1000 }
}
