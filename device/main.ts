import { runCli } from '../base/cli.ts'
import { addonVerbs } from './addons/cli.ts'
import { deviceVerbs } from './cli.ts'

/** Entry of the device's command, bundled into one file: `/usr/lib/bistable/agent/bistable.mjs`. */

const abort = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => abort.abort())

// `bistable status | head`: the reader going away is no failure of ours.
process.stdout.on('error', () => {})

const terminal = {
  out: (line: string) => void process.stdout.write(`${line}\n`),
  err: (line: string) => void process.stderr.write(`${line}\n`),
  interactive: process.stderr.isTTY === true,
}

process.exitCode = await runCli([...deviceVerbs, ...addonVerbs], process.argv.slice(2), terminal, abort.signal)
// An agent that gave up because something below it hangs must not be kept alive by what hangs.
if (process.argv[2] === 'agent') setTimeout(() => process.exit(), 2000).unref()
