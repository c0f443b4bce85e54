import { timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import { type AddressInfo, isIP } from 'node:net'
import { LabError } from '../harness/lab-error.ts'
import { acquire, type Lease, type Leases, readLeases, release, renew } from './lease.ts'
import { replace, sinceBoot } from './store.ts'

/**
 * Leases of a bench that several machines share: POST takes, PUT renews, DELETE gives back `/leases/PLACE`; GET `/leases`
 * lists, without tokens. Kept in a file, so that a restart gives nobody's board away. Only the server's clock counts.
 */

export interface LeaseServer {
  readonly port: number
  close(): Promise<void>
}

export interface LeaseServerOptions {
  /** Written after every change. */
  readonly file: string
  readonly listen?: string
  readonly port?: number
  /** What clients must send as a bearer token. Needed unless only this machine can reach the server. */
  readonly token?: string
  readonly now?: () => number
}

const MOST_BODY = 16 * 1024
const MOST_PLACES = 1000
const LEAST_TTL_MS = 1_000
/** What a lease has after a restart of the server, whatever its clock says by then: as long as one lasts unless told. */
const AFTER_RESTART_MS = 60_000
const MOST_TTL_MS = 3_600_000

interface Reply {
  readonly status: number
  readonly body: object
}

export async function startLeaseServer(options: LeaseServerOptions): Promise<LeaseServer> {
  const { file, listen = '127.0.0.1', token = '', now = steadyClock() } = options
  if (token === '' && !/^(127\.|::1$|localhost$)/.test(listen))
    throw new LabError(`a lease server on ${isIP(listen) ? listen : `"${listen}"`} needs a token: set HIL_LEASE_TOKEN`)
  const kept = Object.entries(stored(file)).map(
    ([place, lease]) => [place, { ...lease, expires: now() + AFTER_RESTART_MS }] as const,
  )
  let leases: Leases = Object.fromEntries(kept)
  // One change after the other: a change is answered when it is on the disk.
  let queue: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(act: () => Promise<T>): Promise<T> => {
    const done = queue.then(act)
    queue = done.catch(() => {})
    return done
  }
  const store = async (changed: Leases) => {
    if (changed === leases) return
    await replace(file, JSON.stringify(changed, null, 2))
    leases = changed
  }
  const answer = async (request: IncomingMessage): Promise<Reply> => {
    if (token !== '' && !sameToken(request.headers.authorization ?? '', `Bearer ${token}`))
      return { status: 401, body: { error: 'wrong or missing token' } }
    if (request.method === 'GET' && request.url === '/leases')
      return {
        status: 200,
        body: Object.fromEntries(Object.values(leases).map((lease) => [lease.place, shown(lease)])),
      }
    const place = placeOf(request.url ?? '')
    if (place === undefined) return { status: 404, body: { error: 'no such path' } }
    const fields = await bodyOf(request)
    const own = fields?.['token']
    if (typeof own !== 'string' || !/^[0-9a-f]{16,64}$/.test(own))
      return { status: 400, body: { error: 'no token in the body' } }
    const ttlMs = Math.min(MOST_TTL_MS, Math.max(LEAST_TTL_MS, Number(fields?.['ttlMs']) || LEAST_TTL_MS))
    return inTurn(async () => {
      if (request.method === 'DELETE') {
        await store(release(leases, place, own))
        return { status: 200, body: {} }
      }
      if (request.method === 'PUT') {
        const renewed = renew(leases, place, own, ttlMs, now())
        await store(renewed.leases)
        return renewed.granted ? { status: 200, body: { lease: renewed.lease } } : refused(renewed.held)
      }
      if (request.method !== 'POST') return { status: 405, body: { error: 'GET, POST, PUT or DELETE' } }
      const owner = String(fields?.['owner'] ?? 'somebody').slice(0, 200)
      if (leases[place] === undefined && Object.keys(leases).length >= MOST_PLACES)
        return { status: 507, body: { error: `more than ${MOST_PLACES} places` } }
      const wish = { place, owner, token: own, ttlMs, steal: fields?.['steal'] === true }
      const taken = acquire(leases, wish, now(), () => false)
      await store(taken.leases)
      if (!taken.granted) return refused(taken.held)
      return { status: 200, body: { lease: taken.lease, ...(taken.instead && { instead: shown(taken.instead) }) } }
    })
  }
  const server = createServer((request, response) => {
    answer(request)
      .catch((error: unknown): Reply => ({ status: 500, body: { error: error instanceof Error ? error.message : '' } }))
      .then(({ status, body }) => {
        response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body))
        request.resume()
      })
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(new LabError(`the lease server cannot listen: ${cause.message}`, { cause })))
    server.listen(options.port ?? 0, listen, resolve)
  })
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      server.closeAllConnections()
      await new Promise<void>((resolve) => server.close(() => resolve()))
      await queue
    },
  }
}

/** The time of day as it was at the start, counted on by a clock that nobody sets: a small computer learns the time late. */
function steadyClock(): () => number {
  const start = Date.now() - sinceBoot()
  return () => start + sinceBoot()
}

function refused(held: Lease | undefined): Reply {
  return held === undefined ? { status: 404, body: {} } : { status: 409, body: { held: shown(held) } }
}

/** The token is its owner's secret. */
function shown(lease: Lease): Lease {
  return { ...lease, token: '' }
}

function sameToken(found: string, wanted: string): boolean {
  const [a, b] = [Buffer.from(found), Buffer.from(wanted)]
  return a.length === b.length && timingSafeEqual(a, b)
}

function placeOf(url: string): string | undefined {
  return /^\/leases\/([A-Za-z0-9._-]{1,100})$/.exec(url)?.[1]
}

async function bodyOf(request: IncomingMessage): Promise<Readonly<Record<string, unknown>> | undefined> {
  let text = ''
  for await (const piece of request) {
    text += String(piece)
    if (text.length > MOST_BODY) return undefined
  }
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Readonly<Record<string, unknown>>) : undefined
  } catch {
    return undefined
  }
}

function stored(file: string): Leases {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch {
    return {}
  }
  try {
    const leases = readLeases(JSON.parse(text))
    if (leases !== undefined) return leases
  } catch {
    // Said below.
  }
  throw new LabError(`${file} holds no leases; remove it if no run is going on`)
}
