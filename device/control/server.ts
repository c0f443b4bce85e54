import { randomBytes } from 'node:crypto'
import { chmod, mkdir, readlink, rename, rm, symlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB } from '../../base/bytes.ts'
import { isBistableError, systemCode } from '../../base/errors.ts'
import { deviceErrors } from '../errors.ts'
import { ask, connectTo, type Message, NOBODY } from './client.ts'
import { eventStream, type Watch } from './events.ts'
import { type LockEdge, takeName } from './lock.ts'

/**
 * The control sockets. Node.js cannot ask who is at the other end of a Unix socket, so there are two: `agent.sock`
 * (0600: root only, every operation) and `status.sock` (0666: everyone, status and events only). `agent.sock` is also the lock
 * (lock.ts): one process at a time works on a device, and whoever comes second asks the first.
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
/** While another process takes the place of a dead one. */
const PAUSE_MS = 10
/** For the name of who holds the lock. */
const WHO_MS = 5000

/**
 * Takes the lock and serves.
 * @param watch what both sockets give to `GET /v1/events`
 * @throws AGENT_BUSY when another process holds it; AGENT_NEEDS_ROOT
 */
export async function serveControl(
  paths: ControlPaths,
  operate: Operate,
  watch: Watch = () => undefined,
): Promise<AsyncDisposable> {
  const answer: Operate = (verb, args, emit, signal) =>
    verb === 'who' ? Promise.resolve({ pid: process.pid }) : operate(verb, args, emit, signal)
  const control = createServer(handler(answer, eventStream(watch)))
  const status = createServer(
    handler((verb, args, emit, signal) => {
      if (verb !== 'status') throw deviceErrors.AGENT_NEEDS_ROOT(`only root may ask for ${verb}`)
      return operate(verb, args, emit, signal)
    }, eventStream(watch)),
  )
  let held = false
  const end = async (): Promise<void> => {
    // While this process still answers: then nobody else has touched it.
    if (held) await rm(paths.control, { force: true })
    await Promise.all([close(control), close(status)])
  }
  try {
    await mkdir(paths.run, { recursive: true, mode: 0o755 })
    await takeOver(control, paths)
    held = true
    await rm(paths.status, { force: true })
    await listen(status, paths.status)
    await chmod(paths.status, 0o666)
  } catch (error) {
    await end()
    const code = systemCode(error)
    if (code === 'EACCES' || code === 'EPERM') throw deviceErrors.AGENT_NEEDS_ROOT(`cannot listen at ${paths.control}`)
    throw error
  }
  return { [Symbol.asyncDispose]: end }
}

/** Listens at a name of its own, then takes the one that everybody knows. */
async function takeOver(server: Server, { run, control }: ControlPaths): Promise<void> {
  const mine = `agent-${randomBytes(4).toString('hex')}.sock`
  await listen(server, join(run, mine))
  const holder = await takeName(folderEdge(run), basename(control), mine)
  if (holder === undefined) return
  const who = await ask(join(run, holder), 'who', {}, () => undefined, AbortSignal.timeout(WHO_MS)).catch(() => NOBODY)
  if (typeof who === 'object' && who !== null && 'pid' in who)
    throw deviceErrors.AGENT_BUSY(`process ${who.pid} is at work`)
  // It ends at this moment, or has no time to answer.
  throw deviceErrors.AGENT_BUSY(`the process at ${control} does not say who it is`)
}

/** Names in the folder of the sockets. */
function folderEdge(run: string): LockEdge {
  const at = (name: string): string => join(run, name)
  return {
    link: (target, name) =>
      unless(
        'EEXIST',
        symlink(target, at(name)).then(() => true),
        false,
      ),
    // No link: the socket of a program that took it in another way.
    target: (name) => unless('ENOENT', unless('EINVAL', readlink(at(name)), name), undefined),
    replace: (from, name) => rename(at(from), at(name)),
    remove: (name) => rm(at(name), { force: true }),
    lives: async (target) => {
      const socket = await connectTo(at(target)).catch(() => undefined)
      if (socket === NOBODY) return false
      // One that this process may not ask, or that has no time, lives.
      if (typeof socket === 'object') socket.destroy()
      return true
    },
    pause: () => sleep(PAUSE_MS),
  }
}

/** What `work` gives, or `otherwise` where it fails with this code. */
async function unless<T, U>(code: string, work: Promise<T>, otherwise: U): Promise<T | U> {
  try {
    return await work
  } catch (error) {
    if (systemCode(error) !== code) throw error
    return otherwise
  }
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
