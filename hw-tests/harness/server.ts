import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Readable, Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { LabError } from './lab-error.ts'

/** A web server that can be as bad as the ones in the field: slow, gone in the middle, answering with a web page. */

export interface Offer {
  /** A file of this machine, or the bytes themselves. */
  readonly from: string | Uint8Array
  readonly type?: string
  /** Only the first bytes of a file are offered, as if it had been cut short. */
  readonly length?: number
  readonly bytesPerSecond?: number
  /** After this many bytes (of all answers) every connection breaks, and no other is answered until `heal`. */
  readonly goneAfter?: number
}

interface Entry extends Offer {
  served: number
  gone: boolean
}

const LOOPBACK = '127.0.0.1'

export class TestServer {
  readonly #server: Server
  readonly #entries = new Map<string, Entry>()
  /** One line per answer: path, range, status. */
  readonly log: string[] = []

  readonly #address: string

  readonly #listen: string

  private constructor(address: string, listen: string) {
    this.#listen = listen
    this.#address = address
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch(() => response.destroy())
    })
  }

  /**
   * `address`: how the device reaches this machine, for example "http://10.0.2.100"; the emulator leads it to the loopback
   * port. `listen`: the address in a bench's network, when the device is a real one.
   */
  static async start(address: string, listen = LOOPBACK): Promise<TestServer> {
    const made = new TestServer(address, listen)
    await new Promise<void>((resolve, reject) => {
      made.#server.once('error', (cause) =>
        reject(new LabError(`no web server on ${listen}: ${cause.message}`, { cause })),
      )
      made.#server.listen(0, listen, resolve)
    })
    return made
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** Offers something under a path; returns its address as the device sees it. */
  offer(path: string, offer: Offer): string {
    this.#entries.set(path, { ...offer, served: 0, gone: false })
    return `${this.#address}${this.#listen === LOOPBACK ? '' : `:${this.port}`}${path}`
  }

  /** Bytes sent of an offer so far. */
  served(path: string): number {
    return this.#entries.get(path)?.served ?? 0
  }

  /** Whether an offer with `goneAfter` has reached that point. */
  gone(path: string): boolean {
    return this.#entries.get(path)?.gone ?? false
  }

  /** The server is back; what was served is not forgotten, `goneAfter` is. */
  heal(path: string): void {
    const entry = this.#entries.get(path)
    if (entry !== undefined) this.#entries.set(path, { ...entry, gone: false, goneAfter: Number.POSITIVE_INFINITY })
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise<void>((resolve) => this.#server.close(() => resolve()))
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '').split('?')[0] ?? ''
    const entry = this.#entries.get(path)
    if (entry?.gone === true) {
      request.socket.destroy()
      return
    }
    if (entry === undefined) {
      response.writeHead(404).end()
      this.log.push(`${path} 404`)
      return
    }
    const size = entry.length ?? (typeof entry.from === 'string' ? (await stat(entry.from)).size : entry.from.length)
    const [first, last, part] = rangeOf(request.headers.range, size)
    response.writeHead(part ? 206 : 200, {
      'Content-Type': entry.type ?? 'application/octet-stream',
      'Content-Length': last - first + 1,
      'Accept-Ranges': 'bytes',
      ETag: `"${path}-${size}"`,
      ...(part ? { 'Content-Range': `bytes ${first}-${last}/${size}` } : {}),
    })
    this.log.push(`${path} ${part ? `206 ${first}-${last}` : '200'}`)
    const body =
      typeof entry.from === 'string'
        ? createReadStream(entry.from, { start: first, end: last })
        : Readable.from([entry.from.subarray(first, last + 1)])
    body.pipe(this.#slow(path, request)).pipe(response)
    response.on('close', () => body.destroy())
  }

  /** Counts, slows down, and breaks the connection where the offer says so. */
  #slow(path: string, request: IncomingMessage): Transform {
    const entries = this.#entries
    return new Transform({
      transform(bytes: Buffer, _encoding, done) {
        const entry = entries.get(path)
        if (entry === undefined) return done()
        const room = (entry.goneAfter ?? Number.POSITIVE_INFINITY) - entry.served
        entry.served += Math.min(bytes.length, Math.max(0, room))
        if (bytes.length > room) {
          entry.gone = true
          this.push(bytes.subarray(0, Math.max(0, room)))
          request.socket.destroy()
          return done()
        }
        const pause = entry.bytesPerSecond === undefined ? 0 : (1000 * bytes.length) / entry.bytesPerSecond
        sleep(pause).then(() => done(null, bytes))
      },
    })
  }
}

/** First and last byte of an answer, and whether it is a part. One range or none. Pure. */
export function rangeOf(header: string | undefined, size: number): readonly [number, number, boolean] {
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(header ?? '') ?? []
  if (from === undefined || Number(from) >= size) return [0, size - 1, false]
  return [Number(from), to === undefined || to === '' ? size - 1 : Math.min(Number(to), size - 1), true]
}
