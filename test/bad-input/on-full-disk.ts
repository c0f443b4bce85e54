import { existsSync, readdirSync } from 'node:fs'
import { runCli } from '../../base/cli.ts'
import { keyVerbs } from '../../keys/cli.ts'
import { publisherVerbs } from '../../publisher/cli.ts'

/** Runs commands one after the other, as JSON on the command line, and prints what each said and left in a folder. */

const [folder = '', commands = '[]'] = process.argv.slice(2)
for (const argv of JSON.parse(commands) as string[][]) {
  const err: string[] = []
  const terminal = { out: () => undefined, err: (line: string) => err.push(line), interactive: false }
  const exit = await runCli([...publisherVerbs, ...keyVerbs], argv, terminal, new AbortController().signal)
  const left = existsSync(folder) ? readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort() : []
  console.log(JSON.stringify({ exit, err: err.filter((line) => !/^(?:delta|build): /.test(line)).join('\n'), left }))
}
