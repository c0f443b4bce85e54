import { randomUUID } from 'node:crypto'
import { chmod, mkdir, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { KiB } from '../../base/bytes.ts'
import { isBistableError, systemCode } from '../../base/errors.ts'
import { deviceErrors } from '../errors.ts'
import { ask, type Message, NOBODY } from './client.ts'
import { eventStream, type Watch } from './events.ts'

/**
 * The control sockets. Node.js cannot ask who is at the other end of a Unix socket, so there are two: `agent.sock`
 * (0600: root only, every operation) and `status.sock` (0666: everyone, status and events only). `agent.sock` is also the lock:
 * one process at a time works on a device, and whoever comes second asks the first.
 */

export type Operate = (
  verb: string,
  args: Readonly<Record<string, unknown>>,
  emit: (message: Message) => void,
  signal: AbortSignal,
) => Promise<unknown>

export interface ControlPaths {
  readonly run: string
  readonly control: string
  readonly status: string
}

const MAX_REQUEST_BYTES = 16 * KiB
const MAX_CONNECTIONS = 32
/** Time for another process, that found the same dead socket at the same moment, to show itself. */
const SETTLE_MS = 50
const WHO_MS = 5000

/**
 * Takes the lock and serves.
 * @param watch what both sockets give to `GET /v1/events`
 * @param meanwhile done while the lock settles: it must change nothing that the lock protects; its failure is passed on
 * @throws AGENT_BUSY when another process holds it; AGENT_NEEDS_ROOT
 */
export async function serveControl(
  paths: ControlPaths,
  operate: Operate,
  meanwhile: () => Promise<void> | void = () => undefined,
  watch: Watch = () => undefined,
): Promise<AsyncDisposable> {
  const name = randomUUID()
  const answer: Operate = (verb, args, emit, signal) =>
    verb === 'who' ? Promise.resolve({ name, pid: process.pid }) : operate(verb, args, emit, signal)
  const control = createServer(handler(answer, eventStream(watch)))
  const status = createServer(
    handler((verb, args, emit, signal) => {
      if (verb !== 'status') throw deviceErrors.AGENT_NEEDS_ROOT(`only root may ask for ${verb}`)
      return operate(verb, args, emit, signal)
    }, eventStream(watch)),
  )
  try {
    await mkdir(paths.run, { recursive: true, mode: 0o755 })
    await takeOver(control, paths.control, name, meanwhile)
    await rm(paths.status, { force: true })
    await listen(status, paths.status)
    await chmod(paths.status, 0o666)
  } catch (error) {
    await Promise.all([close(control), close(status)])
    const code = systemCode(error)
    if (code === 'EACCES' || code === 'EPERM') throw deviceErrors.AGENT_NEEDS_ROOT(`cannot listen at ${paths.control}`)
    throw error
  }
  return {
    [Symbol.asyncDispose]: async () => {
      await Promise.all([close(control), close(status)])
    },
  }
}

async function takeOver(
  server: Server,
  path: string,
  name: string,
  meanwhile: () => Promise<void> | void,
): Promise<void> {
  try {
    await listen(server, path)
  } catch (error) {
    if (systemCode(error) !== 'EADDRINUSE') throw error
    await refuseIfHeld(path)
    // Left by a process that is gone.
    await rm(path, { force: true })
    await listen(server, path).catch(async (again: unknown) => {
      if (systemCode(again) !== 'EADDRINUSE') throw again
      await refuseIfHeld(path)
      throw again
    })
  }
  const settled = new Promise((resolve) => setTimeout(resolve, SETTLE_MS))
  await Promise.all([settled, meanwhile()])
  const holder = await whoHolds(path)
  if (holder?.name !== name) throw deviceErrors.AGENT_BUSY(`process ${holder?.pid ?? '?'} took the lock first`)
}

async function refuseIfHeld(path: string): Promise<void> {
  const holder = await whoHolds(path)
  if (holder !== undefined) throw deviceErrors.AGENT_BUSY(`process ${holder.pid} is at work`)
}

/** @throws AGENT_BUSY when somebody is there and does not say who: it ends at this moment, or has no time to answer */
async function whoHolds(path: string): Promise<{ readonly name: string; readonly pid: number } | undefined> {
  const answer = await ask(path, 'who', {}, () => undefined, AbortSignal.timeout(WHO_MS)).catch((error: unknown) => {
    if (!isBistableError(error, 'AGENT_ANSWER') && !isBistableError(error, 'AGENT_CANCELLED')) throw error
    throw deviceErrors.AGENT_BUSY(`the process at ${path} does not say who it is: ${error.message}`)
  })
  return answer === NOBODY ? undefined : (answer as { name: string; pid: number })
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.maxConnections = MAX_CONNECTIONS
    server.once('error', reject)
    // The socket is made inside listen(): the mask keeps others out from the first moment.
    const before = process.umask(0o177)
    try {
      server.listen(path, () => {
        server.off('error', reject)
        resolve()
      })
    } finally {
      process.umask(before)
    }
  })
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve())
    server.closeAllConnections()
  })
}

function handler(operate: Operate, events: (response: ServerResponse) => void) {
  return (request: IncomingMessage, response: ServerResponse) => {
    if (request.method === 'GET' && request.url === '/v1/events') {
      events(response)
      return
    }
    const gone = new AbortController()
    response.on('close', () => gone.abort(deviceErrors.AGENT_CANCELLED('the command that asked has ended')))
    const emit = (message: Message) => {
      // A reader that does not read must not fill our memory: progress is dropped, results are not.
      if (response.writableNeedDrain && !('result' in message || 'error' in message)) return
      if (!response.destroyed) response.write(`${JSON.stringify(message)}\n`)
    }
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    serve(request, operate, emit, gone.signal)
      .then((result) => emit({ result: result ?? null }))
      .catch((error: unknown) => emit({ error: describe(error) }))
      .finally(() => response.end())
  }
}

async function serve(
  request: IncomingMessage,
  operate: Operate,
  emit: (message: Message) => void,
  signal: AbortSignal,
): Promise<unknown> {
  const match = /^\/v1\/([a-z]{1,32})$/.exec(request.url ?? '')
  if (request.method !== 'POST' || match?.[1] === undefined) {
    throw deviceErrors.AGENT_ANSWER(`${request.method} ${request.url} is not understood`)
  }
  const pieces: Buffer[] = []
  let total = 0
  for await (const piece of request as AsyncIterable<Buffer>) {
    total += piece.length
    if (total > MAX_REQUEST_BYTES) throw deviceErrors.AGENT_ANSWER(`a request has more than ${MAX_REQUEST_BYTES} bytes`)
    pieces.push(piece)
  }
  let args: unknown
  try {
    args = JSON.parse(Buffer.concat(pieces).toString('utf8') || '{}')
  } catch {
    throw deviceErrors.AGENT_ANSWER('the request is not JSON')
  }
  if (typeof args !== 'object' || args === null) throw deviceErrors.AGENT_ANSWER('the request is not a JSON object')
  return operate(match[1], args as Record<string, unknown>, emit, signal)
}

function describe(error: unknown): Record<string, unknown> {
  if (isBistableError(error)) return error.toJSON()
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error)
  return { code: 'INTERNAL', family: 'internal', message, next: 'Please report this.' }
}
