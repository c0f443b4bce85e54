import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, realpath } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { join, sep } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { systemCode } from '../base/errors.ts'
import { printable } from '../base/printable.ts'

/** A small static web server for a publish folder: ranges, strong validators, nothing else. For trials and small fleets. */

export interface ServeOptions {
  readonly port: number
  readonly host: string
  /** One line per request. */
  readonly log?: (line: string) => void
  /** A connection on which nothing moves for so long is ended: each holds a file open. Milliseconds; two minutes unless told. */
  readonly idleMs?: number
}

const IDLE_MS = 120_000
const MAX_CONNECTIONS = 2000

/** Starts serving `folder`; the server is listening when this returns. */
export async function serveFolder(folder: string, options: ServeOptions): Promise<Server> {
  const root = await realpath(folder)
  const server = createServer((request, response) => {
    answer(root, request, response)
      .catch(() => response.destroy())
      .finally(() => {
        const { method, url, headers } = request
        // Node lets bytes from 0x80 on through in headers, some of which steer terminals.
        options.log?.(printable(`${method} ${url} ${response.statusCode} ${headers.range ?? ''}`.trimEnd()))
      })
  })
  server.requestTimeout = 60_000
  server.headersTimeout = 30_000
  server.maxConnections = MAX_CONNECTIONS
  server.setTimeout(options.idleMs ?? IDLE_MS)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(options.port, options.host, resolve)
  })
  return server
}

async function answer(root: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.writeHead(405, { Allow: 'GET, HEAD' }).end()
    return
  }
  const file = await openInside(root, request.url ?? '/')
  if (file === undefined) {
    response.writeHead(404).end()
    return
  }
  try {
    const about = await file.handle.stat({ bigint: true })
    const size = Number(about.size)
    const etag = `"${createHash('sha256').update(`${about.ino} ${about.size} ${about.mtimeNs}`).digest('hex').slice(0, 32)}"`
    response.setHeader('ETag', etag)
    response.setHeader('Accept-Ranges', 'bytes')
    response.setHeader('Content-Type', file.path.endsWith('.json') ? 'application/json' : 'application/octet-stream')
    // A channel file changes in place; a bundle's name holds its digest.
    response.setHeader(
      'Cache-Control',
      file.path.endsWith('.json') ? 'no-cache' : 'public, max-age=31536000, immutable',
    )
    if (matches(request.headers['if-none-match'], etag)) {
      response.writeHead(304).end()
      return
    }
    const condition = request.headers['if-range']
    const wanted = condition === undefined || condition === etag ? request.headers.range : undefined
    const range = parseRange(wanted, size)
    if (range === 'outside') {
      response.writeHead(416, { 'Content-Range': `bytes */${size}` }).end()
      return
    }
    const [first, last] = range ?? [0, size - 1]
    response.setHeader('Content-Length', last - first + 1)
    if (range !== undefined) response.setHeader('Content-Range', `bytes ${first}-${last}/${size}`)
    response.writeHead(range === undefined ? 200 : 206)
    if (request.method === 'HEAD' || size === 0) response.end()
    else await pipeline(file.handle.createReadStream({ start: first, end: last, autoClose: false }), response)
  } finally {
    await file.handle.close()
  }
}

function matches(header: string | undefined, etag: string): boolean {
  return header !== undefined && (header === '*' || header.split(',').some((tag) => tag.trim() === etag))
}

/**
 * One byte range of RFC 9110, section 14; undefined for none, or for several (then the whole is sent, which the RFC
 * allows). Pure.
 */
export function parseRange(
  header: string | undefined,
  size: number,
): readonly [first: number, last: number] | 'outside' | undefined {
  const [, from, to] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '') ?? []
  if (from === undefined || to === undefined || (from === '' && to === '')) return undefined
  if (from === '') {
    const length = Math.min(Number(to), size)
    return length === 0 ? 'outside' : [size - length, size - 1]
  }
  const first = Number(from)
  const last = to === '' ? size - 1 : Math.min(Number(to), size - 1)
  if (to !== '' && Number(to) < first) return undefined
  return first >= size ? 'outside' : [first, last]
}

/** Opens the file that a request path names, inside `root` and nowhere else, links included. */
async function openInside(root: string, url: string): Promise<{ handle: FileHandle; path: string } | undefined> {
  const relative = requestPath(url)
  if (relative === undefined) return undefined
  try {
    const path = await realpath(join(root, relative))
    if (!path.startsWith(root + sep)) return undefined
    const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    if ((await handle.stat()).isFile()) return { handle, path }
    await handle.close()
    return undefined
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

/** The path of a request, decoded, relative; undefined when it is not a plain one. Pure. */
export function requestPath(url: string): string | undefined {
  let path: string
  try {
    path = decodeURIComponent(url.split('?')[0] ?? '')
  } catch {
    return undefined
  }
  const parts = path.split('/')
  if (parts[0] !== '' || parts.length < 2) return undefined
  // Hidden files are being written, or are nobody's business.
  if (parts.slice(1).some((part) => part === '' || part.startsWith('.') || /[\u0000-\u001f\\]/.test(part)))
    return undefined
  return parts.slice(1).join('/')
}
