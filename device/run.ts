import { runCli, type Verb } from '../base/cli.ts'

/** Runs the command line of this process with these verbs; its exit code is set. */
export async function runDevice(verbs: readonly Verb[]): Promise<void> {
  const abort = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => abort.abort())

  // `bistable status | head`: the reader going away is no failure of ours.
  process.stdout.on('error', () => {})

  const terminal = {
    out: (line: string) => void process.stdout.write(`${line}\n`),
    err: (line: string) => void process.stderr.write(`${line}\n`),
    interactive: process.stderr.isTTY === true,
  }
  process.exitCode = await runCli(verbs, process.argv.slice(2), terminal, abort.signal)
}
