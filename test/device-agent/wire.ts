import type { Socket } from 'node:net'
import { listenForTest } from '../helpers/listen.ts'
import type { World } from './world.ts'

/**
 * A web server on a real socket whose link breaks: at one byte of one answer, in one manner, for a time of the world's
 * clock. The bytes are real, so the door under test is the whole of it: sockets, HTTP, ranges, tries and pauses.
 */

export type Break =
  /** The connection is reset, and every new one. */
  | 'reset'
  /** It ends as if that were all, and every new one at once. */
  | 'ends'
  /** Nothing more comes, on no connection. */
  | 'silent'
  /** A byte every ten seconds. */
  | 'crawls'
  /** The rest is other bytes, at each try. */
  | 'lies'

/** How much of the answer still comes. */
export type Where = 'nothing' | 'status line' | 'headers' | 'end of headers' | 'body' | 'last byte'

export interface Fault {
  /** Which answer: the first whose request says so. */
  readonly of: (path: string, from: number) => boolean
  readonly where: Where
  readonly how: Break
  readonly forMs: number
}

export class Wire {
  readonly #world: World
  readonly #files: ReadonlyMap<string, Uint8Array>
  readonly #fault: Fault
  /** Milliseconds of the world's clock. */
  brokenAt: number | undefined
  /** Rises with all that happens here. */
  #stirred = 0
  port = 0

  private constructor(world: World, files: ReadonlyMap<string, Uint8Array>, fault: Fault) {
    this.#world = world
    this.#files = files
    this.#fault = fault
  }

  static async start(world: World, files: ReadonlyMap<string, Uint8Array>, fault: Fault): Promise<Wire> {
    const wire = new Wire(world, files, fault)
    wire.port = await listenForTest((socket) => wire.#serve(socket))
    return wire
  }

  get backAt(): number {
    return (this.brokenAt ?? Number.POSITIVE_INFINITY) + this.#fault.forMs
  }
  get down(): boolean {
    return this.brokenAt !== undefined && this.#world.mono < this.backAt
  }

  /** Until nothing has happened here for so many turns of the event loop; sockets of one process need no time. */
  async settle(): Promise<void> {
    for (let quiet = 0, seen = this.#stirred; quiet < 4; quiet++) {
      await new Promise((resolve) => setImmediate(resolve))
      if (seen === this.#stirred) continue
      seen = this.#stirred
      quiet = -8
    }
  }

  #serve(socket: Socket): void {
    this.#stirred++
    let asked = ''
    socket.on('error', () => undefined)
    socket.on('close', () => this.#stirred++)
    socket.on('drain', () => this.#stirred++)
    if (this.down && this.#cut(socket)) return
    socket.on('data', (bytes) => {
      this.#stirred++
      asked += bytes.toString('latin1')
      for (let end = asked.indexOf('\r\n\r\n'); end >= 0; end = asked.indexOf('\r\n\r\n')) {
        this.#answer(socket, asked.slice(0, end))
        asked = asked.slice(end + 4)
      }
    })
  }

  /** @returns true when nothing more comes on this connection */
  #cut(socket: Socket): boolean {
    const { how } = this.#fault
    if (how === 'reset') socket.resetAndDestroy()
    else if (how === 'ends') socket.end()
    return how === 'reset' || how === 'ends' || how === 'silent'
  }

  #answer(socket: Socket, request: string): void {
    const path = /^GET (\S+) /.exec(request)?.[1] ?? ''
    const range = /^range: bytes=(\d+)-(\d+)$/im.exec(request)
    const file = this.#files.get(path)
    const from = Number(range?.[1] ?? 0)
    const body = file?.subarray(from, Number(range?.[2] ?? file.length) + 1) ?? new Uint8Array(0)
    const head =
      file === undefined
        ? 'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n'
        : `HTTP/1.1 206 Partial Content\r\nContent-Length: ${body.length}\r\nETag: "1"\r\nContent-Range: bytes ${from}-${from + body.length - 1}/${file.length}\r\n\r\n`
    const whole = Buffer.concat([Buffer.from(head), body])
    const { of, how, where } = this.#fault
    const here = of(path, from)
    if (this.brokenAt === undefined && here) this.brokenAt = this.#world.mono
    if (!this.down || (how === 'lies' && !here)) {
      socket.write(whole)
      return
    }
    // While it is down nothing comes at all; one that lies does so in the same place only.
    const first = this.brokenAt === this.#world.mono || how === 'lies'
    const at = first && here ? placeOf(where, head.length, body.length) : 0
    socket.write(whole.subarray(0, at))
    if (how === 'lies') socket.write(whole.subarray(at).map((byte) => byte ^ 0x55))
    else if (how === 'crawls') void this.#crawl(socket, whole.subarray(at))
    else this.#cut(socket)
  }

  async #crawl(socket: Socket, bytes: Uint8Array): Promise<void> {
    for (const byte of bytes) {
      await this.#world.sleep(10_000)
      if (socket.destroyed || !this.down) return
      this.#stirred++
      socket.write(Uint8Array.of(byte))
    }
  }
}

function placeOf(where: Where, head: number, body: number): number {
  switch (where) {
    case 'nothing':
      return 0
    case 'status line':
      return 5
    case 'headers':
      return Math.floor(head / 2)
    case 'end of headers':
      return head
    case 'body':
      return head + Math.floor(body / 2)
    case 'last byte':
      return head + body - 1
  }
}
