import { doorErrors } from './errors.ts'
import { type Answer, shown, Transient } from './request.ts'

/** What an answer says about the file, and whether it is the same file as before. Pure. */

export interface FileFacts {
  /** Bytes of the whole file. */
  readonly size: number
  /** As sent; weak ones included (compared, never used in If-Range). */
  readonly etag: string | undefined
  readonly lastModified: string | undefined
  readonly html: boolean
}

export interface Part {
  readonly facts: FileFacts
  /** True for a 206: the body starts at the byte asked for. False for a 200: it starts at byte 0. */
  readonly ranged: boolean
}

/**
 * Reads status and headers of an answer to "bytes `offset` to `last`".
 * @throws a typed error, or Transient for what may pass
 */
export function readAnswer(answer: Answer, offset: number, last: number): Part {
  const { status, headers } = answer
  const name = shown(answer.url)
  if (status !== 200 && status !== 206) throw refusal(answer)
  const encoding = headers['content-encoding'] ?? 'identity'
  if (encoding !== 'identity') throw wrong(`${name} sent the file encoded as ${encoding}`)
  const type = (headers['content-type'] ?? '').toLowerCase()
  if (type.startsWith('multipart/')) throw wrong(`${name} answered with several parts`)
  const facts = {
    etag: headers.etag,
    lastModified: headers['last-modified'],
    html: /^(text\/html|application\/xhtml)/.test(type),
  }
  if (status === 200) {
    const size = wholeNumber(headers['content-length'])
    if (size === undefined) throw wrong(`${name} does not tell the size of the file`)
    return { facts: { ...facts, size }, ranged: false }
  }
  const range = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/.exec(headers['content-range'] ?? '')
  const [first, end, size] = [wholeNumber(range?.[1]), wholeNumber(range?.[2]), wholeNumber(range?.[3])]
  if (first === undefined || end === undefined || size === undefined)
    throw wrong(`${name} sent a part without saying which: '${(headers['content-range'] ?? '').slice(0, 80)}'`)
  if (first !== offset || end < first || end > last || end >= size)
    throw wrong(`${name} sent bytes ${first}-${end} of ${size}, asked were ${offset}-${last}`)
  return { facts: { ...facts, size }, ranged: true }
}

/** Refuses an answer about another file than the one that was opened. */
export function checkSame(name: string, opened: FileFacts, now: FileFacts): void {
  if (now.html && !opened.html) throw wrong(`${name} answers with a web page in the middle of the file`)
  const difference =
    now.size !== opened.size
      ? `its size went from ${opened.size} to ${now.size}`
      : opened.etag !== undefined && now.etag !== undefined && now.etag !== opened.etag
        ? `its ETag went from ${opened.etag} to ${now.etag}`
        : opened.lastModified !== undefined &&
            now.lastModified !== undefined &&
            now.lastModified !== opened.lastModified
          ? `its date went from ${opened.lastModified} to ${now.lastModified}`
          : undefined
  if (difference !== undefined) throw doorErrors.TRANSPORT_CHANGED(`${name} changed: ${difference}`)
}

/** The validator for If-Range: a strong ETag, else the date (RFC 9110, 13.1.5: never a weak ETag). */
export function validator(facts: FileFacts): string | undefined {
  if (facts.etag?.startsWith('"') === true) return facts.etag
  return facts.lastModified
}

/** @param opened the file that a part must be of; without validators before it was opened */
export function requestHeaders(
  range: string | undefined,
  opened: FileFacts,
  userAgent = 'bistable',
): Record<string, string> {
  const headers: Record<string, string> = { 'User-Agent': userAgent, Accept: '*/*', 'Accept-Encoding': 'identity' }
  if (range === undefined) return headers
  const same = validator(opened)
  return { ...headers, Range: range, ...(same !== undefined && { 'If-Range': same }) }
}

/** True when the first bytes of a file are a web page's. No bundle and no statement starts so. */
export function isWebPage(first: Uint8Array, html: boolean): boolean {
  const start = Buffer.from(first.subarray(0, 512))
    .toString('latin1')
    .replace(/^\xef\xbb\xbf/, '')
    .trimStart()
  return /^(<!doctype\s+html|<html)/i.test(start) || (html && start.startsWith('<'))
}

function refusal(answer: Answer): Error {
  const { status } = answer
  const name = shown(answer.url)
  const sentence = `${name} answered ${status}`
  if (status === 404 || status === 410) return doorErrors.TRANSPORT_MISSING(sentence)
  if (status === 416) return doorErrors.TRANSPORT_SHORT(`${name} has fewer bytes than were asked for (416)`)
  // 511 is what a captive portal is meant to answer (RFC 6585).
  if (status === 511) return wrong(`${name} wants a login on the network first (511)`)
  if (status === 407) return doorErrors.TRANSPORT_PROXY(`the proxy wants a login before it asks ${name} (407)`)
  if (status === 408 || status === 425 || status === 429 || status >= 500)
    return new Transient('TRANSPORT_SERVER', sentence, undefined, retryAfter(answer.headers['retry-after']))
  if (status >= 400) return doorErrors.TRANSPORT_REFUSED(sentence, { details: { status } })
  return wrong(sentence)
}

function retryAfter(header: string | undefined): number {
  // Only seconds: a date would need a clock that is right.
  return (wholeNumber(header) ?? 0) * 1000
}

function wholeNumber(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,16}$/.test(text)) return undefined
  const value = Number(text)
  return Number.isSafeInteger(value) ? value : undefined
}

function wrong(sentence: string): Error {
  return doorErrors.TRANSPORT_WRONG_ANSWER(sentence)
}
