import type { ServerResponse } from 'node:http'

/** Server-sent events: what the agent does, as it happens, for whoever watches. Nothing here can change anything. */

/** @returns a function that ends it; undefined when nobody more may watch, or there is nothing to watch yet */
export type Watch = (send: (notice: object) => void) => (() => void) | undefined

/** Of one socket: watchers must leave connections for those who ask. */
const MAX_WATCHERS = 8
const ALIVE_MS = 15_000

/** @param watch for one socket; counts its own watchers */
export function eventStream(watch: Watch): (response: ServerResponse) => void {
  let watching = 0
  return (response) => {
    const send = (notice: object) => {
      // A reader that does not read must not fill our memory: what it misses is gone.
      if (response.writableNeedDrain || response.destroyed) return
      const name = Object.keys(notice)[0] ?? 'message'
      response.write(`event: ${name}\ndata: ${JSON.stringify((notice as Record<string, unknown>)[name])}\n\n`)
    }
    const end = watching < MAX_WATCHERS ? watch(send) : undefined
    if (end === undefined) {
      response.writeHead(503, { 'retry-after': '10' }).end()
      return
    }
    watching++
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    response.write(': watching\n\n')
    const alive = setInterval(() => {
      if (!response.writableNeedDrain) response.write(': alive\n\n')
    }, ALIVE_MS)
    response.on('close', () => {
      watching--
      clearInterval(alive)
      end()
    })
  }
}
