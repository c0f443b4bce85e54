import { KiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { parseStrictJson } from '../../base/strict-json.ts'
import { keyErrors } from '../errors.ts'

export interface HttpRequest {
  readonly method: 'GET' | 'POST'
  readonly url: URL
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

const MAX_ANSWER = 64 * KiB
const DEADLINE_MS = 30_000

/**
 * Asks a key service once and returns its JSON object.
 * @throws SIGNER_FAILED: no answer within 30 seconds, a redirect, a status but 200, no JSON object of up to 64 KiB
 */
export async function askService(request: HttpRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
  const { method, url, headers, body } = request
  // Requests carry credentials.
  if (url.protocol !== 'https:' && !isLoopback(url.hostname))
    throw keyErrors.SIGNER_FAILED(`${url.origin} is not https: credentials are not sent there`)
  // fetch would obey, and give them to whoever answers.
  if (url.protocol === 'https:' && process.env['NODE_TLS_REJECT_UNAUTHORIZED'] === '0')
    throw keyErrors.SIGNER_FAILED(
      `NODE_TLS_REJECT_UNAUTHORIZED is 0, so nobody could tell who ${url.host} is: credentials are not sent`,
      { next: 'Unset it; name an authority of your own with NODE_EXTRA_CA_CERTS.' },
    )
  try {
    const answer = await fetch(url, {
      method,
      headers,
      ...(method === 'POST' ? { body } : {}),
      redirect: 'error',
      signal: AbortSignal.any([signal, AbortSignal.timeout(DEADLINE_MS)]),
    })
    const bytes = await bounded(answer)
    if (answer.status !== 200)
      throw keyErrors.SIGNER_FAILED(`${url.host} answered ${answer.status}: ${printable(bytes)}`)
    const json = parseStrictJson(bytes, { maxBytes: MAX_ANSWER, integersOnly: false })
    if (typeof json !== 'object' || json === null || Array.isArray(json))
      throw keyErrors.SIGNER_FAILED(`${url.host} answered with something else than a JSON object`)
    return json as Record<string, unknown>
  } catch (cause) {
    if (signal.aborted) throw signal.reason
    if (isBistableError(cause, 'SIGNER_FAILED')) throw cause
    const reason = cause instanceof Error && cause.cause instanceof Error ? cause.cause : cause
    const sentence = reason instanceof Error ? reason.message : String(reason)
    throw keyErrors.SIGNER_FAILED(`${url.host}: ${sentence}`, { cause })
  }
}

/** An endpoint from the environment, or the vendor's. @throws SIGNER_MISSING */
export function endpoint(text: string | undefined, otherwise: string): URL {
  try {
    return new URL(text === undefined || text === '' ? otherwise : text)
  } catch (cause) {
    throw keyErrors.SIGNER_MISSING(`'${text}' is no address`, { cause })
  }
}

/** Base64 with padding, as services write it. @throws SIGNER_FAILED */
export function base64Field(answer: Readonly<Record<string, unknown>>, name: string): Uint8Array {
  const value = answer[name]
  if (typeof value !== 'string' || !/^[A-Za-z0-9+/]+={0,2}$/.test(value))
    throw keyErrors.SIGNER_FAILED(`the answer has no base64 field '${name}'`)
  return new Uint8Array(Buffer.from(value, 'base64'))
}

const isLoopback = (host: string) => host === 'localhost' || host === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(host)

async function bounded(answer: Response): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  let length = 0
  for await (const piece of answer.body ?? []) {
    length += piece.length
    if (length > MAX_ANSWER) throw keyErrors.SIGNER_FAILED(`the answer has more than ${MAX_ANSWER} bytes`)
    pieces.push(piece)
  }
  return new Uint8Array(Buffer.concat(pieces))
}

/** The service's own words, harmless on a terminal. */
function printable(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(0, 300))
    .toString('latin1')
    .replace(/[^ -~]+/g, ' ')
}
