import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { listenForTest } from '../helpers/listen.ts'
import type { World } from './world.ts'

/**
 * Stands between a device and its broker, on real sockets, and breaks at one byte of one MQTT packet that the broker sends:
 * in one manner, for a time of the world's clock.
 */

export type RelayBreak = 'reset' | 'silent' | 'lies'
export type Packet = 'CONNACK' | 'SUBACK' | 'the channel file' | 'the answer' | 'a piece'
/** How much of the packet still comes. */
export type Part = 'nothing' | 'one byte' | 'half' | 'all but one byte'

export class Relay {
  readonly #world: World
  readonly #broker: number
  readonly #packet: Packet
  readonly #part: Part
  readonly #how: RelayBreak
  readonly #forMs: number
  brokenAt: number | undefined
  #stirred = 0
  port = 0

  constructor(world: World, broker: number, packet: Packet, part: Part, how: RelayBreak, forMs: number) {
    this.#world = world
    this.#broker = broker
    this.#packet = packet
    this.#part = part
    this.#how = how
    this.#forMs = forMs
  }

  static async start(...args: ConstructorParameters<typeof Relay>): Promise<Relay> {
    const relay = new Relay(...args)
    relay.port = await listenForTest((socket, sockets) => relay.#serve(socket, sockets))
    return relay
  }

  get backAt(): number {
    return (this.brokenAt ?? Number.POSITIVE_INFINITY) + this.#forMs
  }
  get down(): boolean {
    return this.brokenAt !== undefined && this.#world.mono < this.backAt
  }

  /** The broker and the publisher read files: what goes on takes real time, and is over when nothing has come for a while. */
  async settle(): Promise<void> {
    const before = this.#stirred
    for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setImmediate(resolve))
    if (before === this.#stirred) return
    for (let quiet = 0, seen = this.#stirred; quiet < 4; quiet++) {
      await sleep(5)
      if (seen !== this.#stirred) quiet = -1
      seen = this.#stirred
    }
  }

  #serve(socket: Socket, sockets: Set<Socket>): void {
    this.#stirred++
    socket.on('error', () => undefined)
    socket.on('close', () => this.#stirred++)
    if (this.down && this.#how !== 'lies') {
      if (this.#how === 'reset') socket.resetAndDestroy()
      return
    }
    const broker = connect(this.#broker, '127.0.0.1')
    sockets.add(broker)
    broker.on('error', () => undefined)
    let cut = false
    socket.on('data', (bytes) => {
      this.#stirred++
      if (!cut) broker.write(bytes)
    })
    socket.on('close', () => broker.destroy())
    broker.on('close', () => {
      if (!cut) socket.destroy()
    })
    let kept: Buffer = Buffer.alloc(0)
    broker.on('data', (bytes: Buffer) => {
      this.#stirred++
      kept = Buffer.concat([kept, bytes])
      for (;;) {
        const length = packetLength(kept)
        if (cut || length === undefined || kept.length < length) return
        const packet = kept.subarray(0, length)
        kept = kept.subarray(length)
        cut = this.#pass(socket, packet)
        if (cut) broker.destroy()
      }
    })
  }

  /** @returns true when nothing more comes on this connection */
  #pass(socket: Socket, packet: Buffer): boolean {
    const here = isOne(packet, this.#packet)
    if (this.brokenAt === undefined && here) this.brokenAt = this.#world.mono
    if (!this.down || (this.#how === 'lies' && !here)) {
      socket.write(packet)
      return false
    }
    const at = { nothing: 0, 'one byte': 1, half: packet.length >> 1, 'all but one byte': packet.length - 1 }[
      this.#part
    ]
    socket.write(packet.subarray(0, here ? at : 0))
    if (this.#how === 'lies') socket.write(packet.subarray(at).map((byte) => byte ^ 0x55))
    if (this.#how === 'reset') socket.resetAndDestroy()
    return this.#how !== 'lies'
  }
}

/** Of the first packet, its header included; undefined while that is not known. MQTT 3.1.1, 2.2.3. */
function packetLength(bytes: Buffer): number | undefined {
  let length = 0
  for (let i = 1; i < 5; i++) {
    const byte = bytes[i]
    if (byte === undefined) return undefined
    length += (byte & 0x7f) * 128 ** (i - 1)
    if (byte < 128) return 1 + i + length
  }
  return undefined
}

function isOne(packet: Buffer, name: Packet): boolean {
  const type = (packet[0] ?? 0) >> 4
  if (name === 'CONNACK') return type === 2
  if (name === 'SUBACK') return type === 9
  const text = type === 3 ? packet.subarray(0, 80).toString('latin1') : ''
  if (name === 'the channel file') return text.includes('/channels/')
  return text.includes(name === 'the answer' ? '/answer' : '/pieces/')
}
