import { join } from 'node:path'
import { askedVerbs } from './asked.ts'
import { ask, connectTo } from './control/client.ts'
import { CONTROL_SOCKET } from './control/place.ts'
import { runDevice } from './run.ts'

/**
 * Entry of a command, bundled into one small file beside the whole program: `/usr/lib/bistable/agent/ask.cjs`. Where an agent
 * runs, the verbs that only want its answer load nothing else: the agent begins some 100 ms sooner. In every other
 * case the whole program runs as if this file did not exist.
 */

const WHOLE = './bistable.mjs'
/** What of these the whole program has to do: words for a plan, help. */
const MORE = ['--plan', '--help']

async function begin(): Promise<void> {
  const [verb = '', ...rest] = process.argv.slice(2)
  const socket = await reach(verb, rest)
  if (socket === undefined) {
    await import(WHOLE)
    return
  }
  const verbs = askedVerbs(
    (...asked) => ask(socket, ...asked),
    async () => String,
  )
  try {
    await runDevice(Object.values(verbs))
  } finally {
    socket.destroy()
  }
}

/** A connection to the agent, if it is all that this command needs and may have. */
async function reach(verb: string, rest: readonly string[]) {
  const known = Object.keys(
    askedVerbs(
      async () => undefined,
      async () => String,
    ),
  )
  if (!known.includes(verb) || rest.some((word) => MORE.includes(word))) return undefined
  const socket = await connectTo(join(process.env['BISTABLE_ROOT'] ?? '', CONTROL_SOCKET)).catch(() => undefined)
  return typeof socket === 'symbol' ? undefined : socket
}

void begin()
