import { runCli } from './base/cli.ts'
import { bundleVerbs } from './bundle/cli.ts'
import { diffVerbs } from './bundle/diff-cli.ts'
import { keyVerbs } from './keys/cli.ts'
import { publisherVerbs } from './publisher/cli.ts'

/** The publisher's command line: everything but what only a device can do. */

const interrupt = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  // A second signal ends at once, as everywhere.
  process.once(signal, () => interrupt.abort(new Error(`stopped by ${signal}`)))
}
// `bistable … | head`: the reader going away is no failure of ours.
process.stdout.on('error', () => {})

process.exitCode = await runCli(
  [...publisherVerbs, ...keyVerbs, ...bundleVerbs, ...diffVerbs],
  process.argv.slice(2),
  {
    out: (line) => process.stdout.write(`${line}\n`),
    err: (line) => process.stderr.write(`${line}\n`),
    interactive: process.stderr.isTTY === true,
  },
  interrupt.signal,
)
