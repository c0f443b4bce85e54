import http from 'node:http'
import https from 'node:https'
import { isIP, type Socket } from 'node:net'
import tls from 'node:tls'
import { KiB } from '../../base/bytes.ts'
import type { DoorClock } from './clock.ts'
import { doorErrors } from './errors.ts'
import { type Environment, proxyAuthorization, proxyFor } from './proxy.ts'

/** How a web door reaches its servers: sockets kept open, TLS, proxies. Decides nothing about answers. */

/** Requests under way at once, and one that is kept for what goes wrong. */
const MAX_SOCKETS = 4
export const MAX_HEADERS = 32 * KiB

/** PEM texts. There is no way to accept a server that cannot be identified. */
export interface TlsSettings {
  /** The only authorities that may vouch for a server. Default: those of the system. */
  readonly ca?: string
  /** Shown to servers that ask for a certificate. */
  readonly cert?: string
  readonly key?: string
}

export interface Reach {
  readonly tls?: TlsSettings
  /** Proxy variables; default: none. */
  readonly env?: Environment
}

export interface Connection {
  readonly clock: DoorClock
  /** Milliseconds until the headers of an answer must have arrived, per request. */
  readonly answerMs: number
  /** Sends a GET; the caller waits for its answer. @throws TRANSPORT_PROXY */
  request(url: URL, headers: Readonly<Record<string, string>>): http.ClientRequest
  /** Closes the sockets that are kept. */
  close(): void
}

/** @throws TRANSPORT_TLS when a certificate or key of the settings cannot be used */
export function connect(clock: DoorClock, answerMs: number, { tls: given = {}, env = {} }: Reach): Connection {
  const keep = { keepAlive: true, maxSockets: MAX_SOCKETS }
  // Said here, so that NODE_TLS_REJECT_UNAUTHORIZED in the environment is no insecure switch either.
  const strict = { ...given, rejectUnauthorized: true, minVersion: 'TLSv1.2' as const }
  try {
    tls.createSecureContext(given)
  } catch (cause) {
    throw doorErrors.TRANSPORT_TLS('the certificate, key or authority of this device cannot be used', {
      cause,
      next: 'Correct the PEM files that tls in the settings names; the key must belong to the certificate.',
    })
  }
  const plain = new http.Agent(keep)
  const secure = new https.Agent({ ...keep, ...strict })
  const tunnels = new Map<string, https.Agent>()
  const tunnel = (proxy: URL): https.Agent => {
    const found = tunnels.get(proxy.href) ?? tunnelAgent(proxy, answerMs, strict, keep)
    tunnels.set(proxy.href, found)
    return found
  }
  return {
    clock,
    answerMs,
    request: (url, headers) => {
      const proxy = proxyFor(url, env)
      const options = { headers, maxHeaderSize: MAX_HEADERS }
      if (url.protocol === 'https:')
        return https.request(url, { ...options, agent: proxy === undefined ? secure : tunnel(proxy) })
      if (proxy === undefined) return http.request(url, { ...options, agent: plain })
      return viaProxy(url, proxy, options, plain)
    },
    close: () => {
      for (const agent of [plain, secure, ...tunnels.values()]) agent.destroy()
    },
  }
}

/** A plain request is handed to the proxy with its whole address. */
function viaProxy(url: URL, proxy: URL, options: http.RequestOptions, agent: http.Agent): http.ClientRequest {
  const whole = new URL(url)
  whole.username = ''
  whole.password = ''
  const login = proxyAuthorization(proxy)
  const user = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`
  return http.request({
    ...options,
    agent,
    ...placeOf(proxy),
    path: whole.href,
    ...(user === ':' ? {} : { auth: user }),
    headers: { ...options.headers, Host: url.host, ...(login && { 'Proxy-Authorization': login }) },
  })
}

/** A secure one goes through a tunnel: the proxy sees the name and the port, and TLS is spoken with the server. */
function tunnelAgent(proxy: URL, answerMs: number, strict: tls.ConnectionOptions, keep: http.AgentOptions) {
  const agent = new https.Agent({ ...keep, ...strict })
  type Done = (error: Error | null, socket?: Socket) => void
  const createConnection = ({ host, port }: { host: string; port: number | string }, done: Done): undefined => {
    const place = `${host.includes(':') ? `[${host}]` : host}:${port}`
    const login = proxyAuthorization(proxy)
    const request = http.request({
      ...placeOf(proxy),
      method: 'CONNECT',
      path: place,
      agent: false,
      maxHeaderSize: MAX_HEADERS,
      headers: { Host: place, ...(login && { 'Proxy-Authorization': login }) },
    })
    request.setTimeout(answerMs, () => request.destroy(new Error(`the proxy gave no answer for ${answerMs} ms`)))
    request.once('error', done)
    request.once('connect', ({ statusCode }, socket, ahead) => {
      // The server speaks second in TLS: what came before it did is the proxy's.
      if (statusCode !== 200 || ahead.length > 0) {
        socket.destroy()
        const what = statusCode === 200 ? 'sent bytes of its own into the tunnel' : `answered ${statusCode}`
        return done(doorErrors.TRANSPORT_PROXY(`the proxy ${proxy.host} ${what}, asked for a tunnel to ${place}`))
      }
      socket.setTimeout(0)
      done(null, tls.connect({ ...strict, socket, host, ...(isIP(host) === 0 && { servername: host }) }))
    })
    request.end()
  }
  return Object.assign(agent, { createConnection })
}

function placeOf(proxy: URL): { readonly host: string; readonly port: string } {
  return { host: proxy.hostname.replace(/^\[|\]$/g, ''), port: proxy.port === '' ? '80' : proxy.port }
}
