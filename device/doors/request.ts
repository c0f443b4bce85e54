import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { isBistableError, systemCode } from '../../base/errors.ts'
import { isTlsFailure, tlsWords } from '../../base/tls-failure.ts'
import { within } from './clock.ts'
import type { Connection } from './connect.ts'
import { doorErrors } from './errors.ts'

/** One HTTP exchange: a GET whose answer's headers arrived, redirects followed. Decides nothing about its content. */

const MAX_REDIRECTS = 5

export interface Answer {
  /** Where the answer came from, after redirects. */
  readonly url: URL
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** Must be read to the end or destroyed. */
  readonly body: IncomingMessage
}

/** A failure that may pass: the next try may succeed. Carries what to say when the tries are spent. */
export class Transient extends Error {
  override readonly name = 'Transient'
  readonly code: 'TRANSPORT_LOST' | 'TRANSPORT_STALLED' | 'TRANSPORT_SERVER'
  /** Milliseconds that the server asked to wait. */
  readonly waitMs: number

  constructor(code: Transient['code'], sentence: string, cause?: unknown, waitMs = 0) {
    super(sentence, { cause })
    this.code = code
    this.waitMs = waitMs
  }
}

export async function get(
  connection: Connection,
  url: URL,
  headers: Readonly<Record<string, string>>,
  signal: AbortSignal | undefined,
): Promise<Answer> {
  let at = url
  for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
    signal?.throwIfAborted()
    const body = await exchange(connection, at, headers, signal)
    const status = body.statusCode ?? 0
    if (![301, 302, 303, 307, 308].includes(status)) return { url: at, status, headers: body.headers, body }
    body.destroy()
    at = redirectTarget(at, body.headers.location)
  }
  throw doorErrors.TRANSPORT_REDIRECT(`${shown(url)} redirects more than ${MAX_REDIRECTS} times`)
}

/** Refuses addresses that are not http or https. */
export function parseAddress(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || (url.protocol !== 'http:' && url.protocol !== 'https:'))
    throw doorErrors.TRANSPORT_ADDRESS(`'${text}' is not an http or https address`)
  url.hash = ''
  return url
}

/** An address for messages: without user name and password, and without the query, which may hold a token. */
export function shown(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}`
}

function redirectTarget(from: URL, location: string | undefined): URL {
  if (location === undefined || !URL.canParse(location, from.href))
    throw doorErrors.TRANSPORT_REDIRECT(`${shown(from)} redirects to nowhere`)
  const to = new URL(location, from)
  if (to.protocol !== 'https:' && (to.protocol !== 'http:' || from.protocol === 'https:'))
    throw doorErrors.TRANSPORT_REDIRECT(`${shown(from)} redirects to ${shown(to)}, which is not allowed from there`)
  return to
}

/** An answer that nobody wants any more; its connection is given up. */
export function dropped(answer: Promise<Answer> | undefined): undefined {
  answer?.then(
    ({ body }) => body.destroy(),
    () => undefined,
  )
}

/** With an exact length the body ends by itself; read to that end, its connection serves the next request. */
export function endsItself(answer: Answer, wanted: number): boolean {
  return answer.headers['content-length'] === String(wanted)
}

async function exchange(
  connection: Connection,
  url: URL,
  headers: Readonly<Record<string, string>>,
  signal: AbortSignal | undefined,
): Promise<IncomingMessage> {
  const request = connection.request(url, headers)
  const stop = (): void => {
    request.destroy()
  }
  signal?.addEventListener('abort', stop, { once: true })
  try {
    const answer = new Promise<IncomingMessage>((resolve, reject) => {
      request.once('response', resolve)
      // Stays for good: a socket may fail once more after the answer began, and that is the body's to tell.
      request.on('error', reject)
      request.once('close', () => reject(new Error('closed without an answer')))
    })
    request.end()
    return await within(connection.clock, connection.answerMs, answer, () => {
      request.destroy()
      return new Transient('TRANSPORT_STALLED', `${shown(url)} gave no answer for ${connection.answerMs} ms`)
    })
  } catch (error) {
    signal?.throwIfAborted()
    throw failure(url, error)
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}

/** A failed exchange or body as a typed error, or as one that may pass. */
export function failure(url: URL, error: unknown): Error {
  if (error instanceof Transient || isBistableError(error)) return error
  const code = systemCode(error) ?? ''
  const sentence = error instanceof Error ? error.message : String(error)
  if (code.startsWith('HPE_'))
    return doorErrors.TRANSPORT_WRONG_ANSWER(`${shown(url)} does not answer as a web server does: ${code}`, {
      cause: error,
    })
  if (isTlsFailure(code))
    return doorErrors.TRANSPORT_TLS(`${shown(url)}: ${tlsWords(code, new Date())}`, { cause: error })
  return new Transient('TRANSPORT_LOST', `${shown(url)}: ${code === '' ? sentence : code}`, error)
}
