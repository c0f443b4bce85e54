import type { Socket } from 'node:net'
import { join } from 'node:path'
import { askedVerbs } from './asked.ts'
import { ask, connectTo } from './control/client.ts'
import { CONTROL_SOCKET } from './control/place.ts'
import { runDevice } from './run.ts'

/**
 * Entry of a command, bundled into one small file beside the whole program: `/usr/lib/bistable/agent/ask.cjs`. Where an agent
 * runs, the verbs that only want its answer load nothing else, which saves some 70 ms of processor time. In every
 * other case the whole program runs as if this file did not exist.
 */

const WHOLE = './bistable.mjs'
/** What of these the whole program has to do: words for a plan, help. */
const MORE = ['--plan', '--help']
const socketPath = join(process.env['BISTABLE_ROOT'] ?? '', CONTROL_SOCKET)

async function begin(): Promise<void> {
  const [verb = '', ...rest] = process.argv.slice(2)
  let agent: Socket | undefined
  const verbs = askedVerbs(
    (...asked) => ask(agent ?? socketPath, ...asked),
    async () => String,
  )
  if (Object.hasOwn(verbs, verb) && !rest.some((word) => MORE.includes(word))) agent = await reach()
  if (agent === undefined) {
    await import(WHOLE)
    return
  }
  try {
    await runDevice(Object.values(verbs))
  } finally {
    agent.destroy()
  }
}

/** A connection to the agent; undefined where none runs, or this user may not ask it: the whole program has words for that. */
async function reach(): Promise<Socket | undefined> {
  const socket = await connectTo(socketPath).catch(() => undefined)
  return typeof socket === 'symbol' ? undefined : socket
}

void begin()
