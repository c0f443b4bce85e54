import { type IncomingMessage, request } from 'node:http'
import { systemCode } from '../../base/errors.ts'
import { deviceErrors } from '../errors.ts'
import { MAX_LINE_BYTES } from './client.ts'

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
