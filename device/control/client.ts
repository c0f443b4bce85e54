import { stat } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
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
const MAX_LINE_BYTES = 512 * KiB

export const NOBODY = Symbol('nobody listens')
export const FORBIDDEN = Symbol('only root may ask')

/**
 * Sends one operation and follows its answer to the end.
 * @returns the result, NOBODY when no process holds the socket, FORBIDDEN when this user may not connect
 * @throws the error that the other side gave, with its own code; AGENT_ANSWER when the answer breaks off
 */
export async function ask(
  socket: string,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  onMessage: (message: Message) => void,
  signal: AbortSignal,
): Promise<unknown> {
  // The usual case without an agent, at a hundredth of the cost of a request.
  if (!(await isThere(socket))) return NOBODY
  return await new Promise<unknown>((resolve, reject) => {
    let ended = false
    const finish = (settle: () => void) => {
      if (ended) return
      ended = true
      settle()
      call.destroy()
    }
    const call = request({ socketPath: socket, method: 'POST', path: `/v1/${verb}`, signal }, (response) => {
      let pending = ''
      response.setEncoding('utf8')
      response.on('data', (text: string) => {
        pending += text
        if (pending.length > MAX_LINE_BYTES) {
          finish(() => reject(deviceErrors.AGENT_ANSWER('the answer has a line without an end')))
          return
        }
        const lines = pending.split('\n')
        pending = lines.pop() ?? ''
        for (const line of lines) {
          const message = parse(line)
          if (message === undefined) finish(() => reject(deviceErrors.AGENT_ANSWER('the answer is not JSON')))
          else if ('result' in message) finish(() => resolve(message.result))
          else if ('error' in message) finish(() => reject(revive(message.error)))
          else onMessage(message)
        }
      })
      const broken = () =>
        finish(() => reject(deviceErrors.AGENT_ANSWER('the answer broke off; the other process may have ended')))
      response.on('end', broken)
      response.on('error', broken)
    })
    call.on('error', (error) => {
      const code = systemCode(error)
      if (signal.aborted) finish(() => reject(deviceErrors.AGENT_CANCELLED(`${verb} was stopped`)))
      else if (code === 'ENOENT' || code === 'ECONNREFUSED') finish(() => resolve(NOBODY))
      else if (code === 'EACCES' || code === 'EPERM') finish(() => resolve(FORBIDDEN))
      else finish(() => reject(deviceErrors.AGENT_ANSWER(`asking at ${socket} failed: ${code ?? error.message}`)))
    })
    call.end(JSON.stringify(args))
  })
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    (error: unknown) => systemCode(error) !== 'ENOENT',
  )
}

/**
 * Follows `GET /v1/events` at the first socket that lets this user in, until the signal is aborted or the agent ends.
 * @throws AGENT_ANSWER when no agent runs, or it does not let more watch
 */
export async function watchEvents(
  sockets: readonly string[],
  signal: AbortSignal,
  onEvent: (name: string, data: unknown) => void,
): Promise<void> {
  for (const socketPath of sockets) {
    const response = await new Promise<IncomingMessage | undefined>((resolve) => {
      const call = request({ socketPath, path: '/v1/events', signal }, resolve)
      call.on('error', () => resolve(undefined))
      call.end()
    })
    if (response === undefined) continue
    if (response.statusCode !== 200) {
      response.destroy()
      throw deviceErrors.AGENT_ANSWER(`the agent does not let more watch: ${response.statusCode}`)
    }
    let pending = ''
    try {
      for await (const piece of response.setEncoding('utf8') as AsyncIterable<string>) {
        pending += piece
        if (pending.length > MAX_LINE_BYTES) throw deviceErrors.AGENT_ANSWER('an event without an end')
        const blocks = pending.split('\n\n')
        pending = blocks.pop() ?? ''
        for (const block of blocks) {
          const match = /^event: (\w+)\ndata: (.*)$/.exec(block)
          if (match?.[1] !== undefined && match[2] !== undefined) onEvent(match[1], JSON.parse(match[2]))
        }
      }
    } catch (error) {
      if (!signal.aborted && systemCode(error) !== 'ECONNRESET') throw error
    }
    return
  }
  if (!signal.aborted) throw deviceErrors.AGENT_ANSWER('no agent runs: there is nothing to watch')
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
