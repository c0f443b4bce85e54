import { request as httpRequest } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB } from '../../base/bytes.ts'
import { systemReason } from '../../base/errors.ts'
import type { PlannedCheck } from '../../bundle/health-plan.ts'
import type { Brokers } from '../doors/brokers.ts'

/** Health checks that ask over the network. Each ends within its time, whatever the other side does, and never rejects. */

export interface Probed {
  readonly ok: boolean
  readonly timedOut: boolean
  /** What was found. */
  readonly said: string
}

type Asked<Kind extends PlannedCheck['kind']> = Extract<PlannedCheck, { kind: Kind }>

export interface Probes {
  tcp(check: Pick<Asked<'tcp'>, 'host' | 'port'>, ms: number, signal: AbortSignal): Promise<Probed>
  http(check: Pick<Asked<'http'>, 'url' | 'status' | 'contains'>, ms: number, signal: AbortSignal): Promise<Probed>
  broker(check: Pick<Asked<'broker'>, 'url'>, ms: number, signal: AbortSignal): Promise<Probed>
}

/** Of an answer that is looked into. */
const MAX_BODY = 64 * KiB
const LOOK_MS = 100
/** What is stopped may still say how far it came. */
const LAST_WORDS_MS = 20

/**
 * @param brokers the agent's ties: "sees its broker" means the connection that updates come through, with its names and keys
 * @param channel where the device's channel is on a broker; undefined: on none
 */
export function realProbes(brokers: Brokers | undefined, channel: string | undefined): Probes {
  return {
    tcp: ({ host, port }, ms, signal) =>
      within(
        ms,
        signal,
        (limit) =>
          new Promise((resolve) => {
            const socket = connect({ host, port, signal: limit })
            const done = (ok: boolean, said: string) => {
              socket.destroy()
              resolve({ ok, said })
            }
            socket.once('connect', () => done(true, `${host}:${port} accepts`))
            socket.on('error', (error) => done(false, `${host}:${port}: ${systemReason(error)}`))
          }),
      ),
    http: (check, ms, signal) => within(ms, signal, (limit) => askWeb(check, limit)),
    broker: ({ url }, ms, signal) => within(ms, signal, (limit) => seeBroker(brokers, url ?? channel, limit)),
  }
}

type Found = Pick<Probed, 'ok' | 'said'>

/** Ends what hangs: the work is told by its signal, and not waited for when it does not listen. */
async function within(ms: number, signal: AbortSignal, work: (limit: AbortSignal) => Promise<Found>): Promise<Probed> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(Math.max(1, Math.ceil(ms)))])
  const ended = new Promise<undefined>((resolve) => {
    if (limit.aborted) resolve(undefined)
    limit.addEventListener('abort', () => resolve(undefined), { once: true })
  })
  const found = work(limit).catch((error): Found => ({ ok: false, said: systemReason(error) }))
  const first = await Promise.race([found, ended])
  if (first !== undefined && (first.ok || !limit.aborted)) return { ...first, timedOut: false }
  const last = first ?? (await Promise.race([found, sleep(LAST_WORDS_MS)]))
  return { ok: false, timedOut: !signal.aborted, said: last?.ok === false ? last.said : '' }
}

function askWeb({ url, status, contains }: Parameters<Probes['http']>[0], signal: AbortSignal): Promise<Found> {
  return new Promise((resolve) => {
    const ask = url.startsWith('https:') ? httpsRequest : httpRequest
    // No agent: a connection that is kept would answer for a server that takes no new ones.
    const call = ask(
      url,
      { signal, agent: false, headers: { 'user-agent': 'bistable', connection: 'close' } },
      (answer) => {
        const code = answer.statusCode ?? 0
        const right = status === undefined ? code >= 200 && code < 300 : status.includes(code)
        const end = (ok: boolean, said: string) => {
          answer.destroy()
          resolve({ ok, said })
        }
        if (!right) return end(false, `answer ${code}, wanted ${status?.join(' or ') ?? '2xx'}`)
        if (contains === undefined) return end(true, `answer ${code}`)
        let body = Buffer.alloc(0)
        const look = (last: boolean) => {
          if (body.includes(contains)) end(true, `answer ${code} with "${contains}"`)
          else if (last || body.length >= MAX_BODY) end(false, `answer ${code} without "${contains}"`)
        }
        answer.on('data', (piece: Buffer) => {
          body = Buffer.concat([body, piece]).subarray(0, MAX_BODY)
          look(false)
        })
        answer.on('end', () => look(true))
        answer.on('error', (error) => end(false, systemReason(error)))
      },
    )
    call.on('error', (error) => resolve({ ok: false, said: systemReason(error) }))
    call.end()
  })
}

async function seeBroker(brokers: Brokers | undefined, url: string | undefined, signal: AbortSignal): Promise<Found> {
  if (url === undefined || brokers === undefined)
    return { ok: false, said: 'no broker: the channel of this device is on none, and the check names none' }
  // The tie needs a published file's address; for a connection any will do.
  const address = new URL(url).pathname.length > 1 ? url : `${url.replace(/\/$/, '')}/channels/health.json`
  const lease = brokers.lease(address)
  try {
    while (!lease.link.connected && !signal.aborted) await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined)
    // Not connected: why the last try failed says more than the limit.
    if (lease.link.connected) return { ok: true, said: 'connected' }
    return { ok: false, said: lease.link.failure?.message ?? 'no connection' }
  } finally {
    lease.release()
  }
}
