import { runCli } from '../../base/cli.ts'
import { keyVerbs } from '../../keys/cli.ts'

/** Runs a key verb in this process, without a terminal. */
export async function keysCli(...argv: string[]) {
  const out: string[] = []
  const err: string[] = []
  const terminal = { out: (l: string) => out.push(l), err: (l: string) => err.push(l), interactive: false }
  const code = await runCli(keyVerbs, argv, terminal, new AbortController().signal)
  return { code, out: out.join('\n'), err: err.join('\n') }
}

/** The same with --json; fails with what it printed unless the verb succeeds. */
export async function keysJson(...argv: string[]): Promise<Record<string, unknown>> {
  const { code, out } = await keysCli(...argv, '--json')
  const json = JSON.parse(out)
  if (code !== 0) throw new Error(`${argv.join(' ')}: ${out}`)
  return json
}
