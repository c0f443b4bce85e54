import { stat } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { KiB } from '../../base/bytes.ts'
import { BistableError, type ErrorFamily, EXIT, systemCode } from '../../base/errors.ts'
import { deviceErrors } from '../errors.ts'

/** Asks whoever holds the control socket: the agent, or another command at work. */

/** One line of an answer: progress and words while it lasts, one result or one error at its end. */
export type Message =
  | { readonly progress: unknown }
  | { readonly line: string }
  | { readonly result: unknown }
  | { readonly error: Record<string, unknown> }

/** The longest line an answer may have; a status with full history is far below. */
export const MAX_LINE_BYTES = 512 * KiB

export const NOBODY = Symbol('nobody listens')
export const FORBIDDEN = Symbol('only root may ask')

/**
 * Connects to whoever holds a control socket.
 * @returns the connection; NOBODY when no process holds the socket, FORBIDDEN when this user may not connect
 * @throws AGENT_ANSWER when it fails in another way
 */
export async function connectTo(path: string): Promise<Socket | typeof NOBODY | typeof FORBIDDEN> {
  // The usual case without an agent, at a hundredth of the cost of a connection.
  if (!(await isThere(path))) return NOBODY
  return await new Promise((resolve, reject) => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.off('error', refused)
      resolve(socket)
    })
    const refused = (error: Error): void => {
      const code = systemCode(error)
      if (code === 'ENOENT' || code === 'ECONNREFUSED') resolve(NOBODY)
      else if (code === 'EACCES' || code === 'EPERM') resolve(FORBIDDEN)
      else reject(deviceErrors.AGENT_ANSWER(`asking at ${path} failed: ${code ?? error.message}`))
    }
    socket.once('error', refused)
  })
}

/**
 * Sends one operation and follows its answer to the end.
 * @param socket its path, or what `connectTo` gave
 * @returns the result, NOBODY when no process holds the socket, FORBIDDEN when this user may not connect
 * @throws the error that the other side gave, with its own code; AGENT_ANSWER when the answer breaks off
 */
export async function ask(
  socket: string | Socket,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  onMessage: (message: Message) => void,
  signal: AbortSignal,
): Promise<unknown> {
  const line = typeof socket === 'string' ? await connectTo(socket) : socket
  if (line === NOBODY || line === FORBIDDEN) return line
  return await new Promise<unknown>((resolve, reject) => {
    let ended = false
    const finish = (settle: () => void): void => {
      if (ended) return
      ended = true
      signal.removeEventListener('abort', stop)
      settle()
      line.destroy()
    }
    const fail = (sentence: string): void => finish(() => reject(deviceErrors.AGENT_ANSWER(sentence)))
    const stop = (): void => finish(() => reject(deviceErrors.AGENT_CANCELLED(`${verb} was stopped`)))
    const take = answerReader(fail, (message) => {
      if ('result' in message) finish(() => resolve(message.result))
      else if ('error' in message) finish(() => reject(revive(message.error)))
      else onMessage(message)
    })
    line.setEncoding('utf8').on('data', (text: string) => {
      if (!ended) take(text)
    })
    line.on('error', (error) => fail(`the answer broke off: ${systemCode(error) ?? error.message}`))
    line.on('close', () => fail('the answer broke off; the other process may have ended'))
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop, { once: true })
    const body = JSON.stringify(args)
    // HTTP/1.0: the answer comes as it is, and ends with the connection. Node.js's own client would take longer to load than to answer.
    line.write(`POST /v1/${verb} HTTP/1.0\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
  })
}

/** Takes an answer as it comes: its head, then lines of JSON. */
function answerReader(fail: (sentence: string) => void, onMessage: (message: Message) => void): (text: string) => void {
  let pending = ''
  let inHead = true
  return (text) => {
    pending += text
    if (inHead) {
      const end = pending.indexOf('\r\n\r\n')
      if (end >= 0) {
        const status = /^HTTP\/1\.[01] (\d{3})/.exec(pending)?.[1]
        if (status !== '200') return fail(`the other side answers with status ${status ?? 'none'}`)
        pending = pending.slice(end + 4)
        inHead = false
      }
    }
    if (pending.length > MAX_LINE_BYTES) return fail('the answer has a line without an end')
    if (inHead) return
    const lines = pending.split('\n')
    pending = lines.pop() ?? ''
    for (const line of lines) {
      const message = parse(line)
      if (message === undefined) return fail('the answer is not JSON')
      onMessage(message)
    }
  }
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    (error: unknown) => systemCode(error) !== 'ENOENT',
  )
}

function parse(line: string): Message | undefined {
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null ? (value as Message) : undefined
  } catch {
    return undefined
  }
}

function revive(error: Record<string, unknown>): Error {
  const { code, family, message, next, details } = error
  if (typeof code !== 'string' || typeof family !== 'string' || !(family in EXIT)) {
    return deviceErrors.AGENT_ANSWER(`an error without a code: ${String(message)}`)
  }
  const entry = { family: family as ErrorFamily, meaning: '', next: String(next ?? '') }
  const extras = typeof details === 'object' && details !== null ? { details: details as Record<string, unknown> } : {}
  return new BistableError(code, entry, String(message), extras)
}
