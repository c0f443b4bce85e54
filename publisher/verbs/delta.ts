import { resolve } from 'node:path'
import { humanBytes } from '../../base/bytes.ts'
import { cliErrors, requiredOption, type Verb } from '../../base/cli.ts'
import type { ByteSource } from '../../base/source.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { type DeltaSide, makeDelta } from '../delta/make.ts'

export const deltaVerb: Verb = {
  name: 'delta',
  usage: 'delta OLD.bundle NEW.bundle --output FILE',
  summary: 'Make a patch between two releases; devices that run the old one fetch it instead of chunks. Needs no key.',
  options: { output: { type: 'string', short: 'o', value: 'FILE', help: 'the patch' } },
  run: async (call) => {
    const [old, next, ...more] = call.positionals
    if (old === undefined || next === undefined || more.length > 0) throw cliErrors.USAGE('wanted exactly two bundles')
    const output = resolve(requiredOption(call, 'output'))
    const opened: ByteSource[] = []
    // Nothing follows from what they say but bytes that devices compare with a signed index.
    const side = async (path: string): Promise<DeltaSide> => {
      const source = await fileSource(path)
      opened.push(source)
      return { source, head: (await inspectBundle(source, { signal: call.signal })).head }
    }
    try {
      const [from, to] = [await side(old), await side(next)]
      const say = (line: string): void => call.terminal.err(`delta: ${line}`)
      const made = await makeDelta(from, to, output, { say, signal: call.signal })
      const releases = [from, to].map(({ head }) => formatNumber(head.statement.number))
      if (call.json)
        call.terminal.out(JSON.stringify({ ok: true, output, from: from.head.digest, to: to.head.digest, ...made }))
      else
        call.terminal.out(
          `${output}: ${made.size} bytes (${humanBytes(made.size)}) from ${releases[0]} to ${releases[1]}, instead of chunks of ${humanBytes(made.instead)}${made.left > 0 ? `; ${humanBytes(made.left)} stay chunks` : ''}; devices compress ${humanBytes(made.packed)} again`,
        )
      return 0
    } finally {
      for (const source of opened) await source.close()
    }
  },
}
