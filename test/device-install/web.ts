import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { onTestFinished } from 'vitest'
import type { ByteSource } from '../../base/source.ts'
import { type HttpDoorOptions, openHttpDoor } from '../../device/doors/http.ts'

/** Real web servers on loopback, good and hostile, and what they saw. */

export interface Seen {
  readonly method: string
  readonly url: string
  readonly range: string | undefined
  readonly ifRange: string | undefined
}

export interface Web {
  readonly url: string
  readonly seen: Seen[]
  /** Connections accepted. */
  connections: number
}

export async function serve(
  handler: (request: IncomingMessage, response: ServerResponse, count: number) => void,
): Promise<Web> {
  const sockets = new Set<Socket>()
  const web: Web = { url: '', seen: [], connections: 0 }
  const server = http.createServer((request, response) => {
    const { range, 'if-range': ifRange } = request.headers
    web.seen.push({ method: request.method ?? '', url: request.url ?? '', range, ifRange: ifRange?.toString() })
    handler(request, response, web.seen.length)
  })
  server.on('connection', (socket) => {
    web.connections++
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  return Object.assign(web, { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/file` })
}

export interface FileHeaders {
  readonly etag?: string
  readonly lastModified?: string
  readonly type?: string
}

/** What a range request asks for; the whole file without one. */
export function asked(request: IncomingMessage, size: number): { from: number; to: number; ranged: boolean } {
  const match = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '')
  if (match === null) return { from: 0, to: size - 1, ranged: false }
  const last = match[2] === '' || match[2] === undefined ? size - 1 : Number(match[2])
  return { from: Number(match[1]), to: Math.min(last, size - 1), ranged: true }
}

/** Answers as a proper static server does, If-Range included. `limit`: how many bytes until the connection breaks. */
export function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  bytes: Uint8Array,
  headers: FileHeaders = { etag: '"1"' },
  limit = Number.POSITIVE_INFINITY,
): void {
  let { from, to, ranged } = asked(request, bytes.length)
  const condition = request.headers['if-range']
  if (condition !== undefined && condition !== headers.etag && condition !== headers.lastModified) {
    ranged = false
    from = 0
    to = bytes.length - 1
  }
  if (headers.etag !== undefined) response.setHeader('ETag', headers.etag)
  if (headers.lastModified !== undefined) response.setHeader('Last-Modified', headers.lastModified)
  response.setHeader('Content-Type', headers.type ?? 'application/octet-stream')
  response.setHeader('Content-Length', to + 1 - from)
  if (ranged) response.setHeader('Content-Range', `bytes ${from}-${to}/${bytes.length}`)
  response.writeHead(ranged ? 206 : 200)
  const body = bytes.subarray(from, to + 1)
  if (body.length <= limit) response.end(body)
  else response.write(body.subarray(0, limit), () => setTimeout(() => response.destroy(), 5))
}

/** Short patience for tests; closes the door when the test ends. */
export async function openQuick(url: string, options: HttpDoorOptions = {}): Promise<ByteSource> {
  const door = await openHttpDoor(url, {
    answerMs: 5000,
    rate: { windowMs: 5000, bytes: 1 },
    patience: { firstMs: 1, maxMs: 4, tries: 4 },
    ...options,
  })
  onTestFinished(() => door.close())
  return door
}
