import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { cliErrors, requiredOption, stringOption, type Verb } from '../../base/cli.ts'
import { buildAddon, packAddon } from '../addon.ts'
import { publisherErrors } from '../errors.ts'
import { readRoots } from '../roots.ts'
import { listOption, numberOption, onePositional } from './options.ts'
import { signVerb } from './release.ts'

/** The verbs of add-ons: build, sign, pack. */

const DAY_MS = 86_400_000
/** An add-on that is wanted for longer belongs into a release. */
const MOST_DAYS = 366

const buildVerb: Verb = {
  name: 'addon build',
  usage: 'addon build FOLDER --name NAME --base BUNDLE|DIGEST… --output DIR (--fixes ID… | --debug)',
  summary: 'Build a small signed extension of /usr for given releases. Needs no key.',
  options: {
    name: { type: 'string', value: 'NAME', help: 'lower-case; also the name of the system extension' },
    base: { type: 'string', multiple: true, value: 'BUNDLE|DIGEST', help: 'a release that it is for' },
    fixes: {
      type: 'string',
      multiple: true,
      value: 'ID',
      help: 'what it fixes; a release that lists these needs it no more',
    },
    debug: { type: 'boolean', help: 'tools for one release' },
    summary: { type: 'string', value: 'TEXT', help: 'one line for people' },
    days: { type: 'string', value: 'N', help: 'until it expires (30; at most 366)' },
    product: { type: 'string', value: 'NAME', help: 'where only digests are given' },
    'root-version': { type: 'string', value: 'N', help: 'oldest root whose keys may sign' },
    output: { type: 'string', value: 'DIR', help: 'the new build folder' },
  },
  run: async (call) => {
    const output = resolve(requiredOption(call, 'output'))
    if (existsSync(output)) throw publisherErrors.OUTPUT_EXISTS(`${output} exists already`)
    const days = numberOption(call, 'days', 1, 30)
    if (days > MOST_DAYS) throw cliErrors.USAGE(`--days is at most ${MOST_DAYS}, found ${days}`)
    const debug = call.options['debug'] === true
    const name = requiredOption(call, 'name')
    const fixes = listOption(call, 'fixes')
    if (debug === fixes.length > 0) throw cliErrors.USAGE('wanted --fixes, or --debug')
    const now = Date.now()
    const at = (ms: number) => new Date(Math.floor(ms / 1000) * 1000).toISOString().replace('.000Z', 'Z')
    const rootVersion = call.options['root-version'] === undefined ? undefined : numberOption(call, 'root-version', 1)
    const statement = await buildAddon(
      {
        ...{ folder: resolve(onePositional(call, 'FOLDER')), name, kind: debug ? 'debug' : 'fix', fixes, rootVersion },
        summary: stringOption(call, 'summary') ?? (debug ? `tools for ${name}` : `fix ${fixes.join(', ')}`),
        bases: listOption(call, 'base'),
        product: stringOption(call, 'product'),
        ...{ issued: at(now), expires: at(now + days * DAY_MS) },
      },
      output,
      call.signal,
    )
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, output, statement }))
    else
      call.terminal.out(
        `${output}: ${name}, ${statement.image.length} bytes, expires ${statement.expires}; next: bistable addon sign ${output} --key KEY`,
      )
    return 0
  },
}

const packVerb: Verb = {
  name: 'addon pack',
  usage: 'addon pack BUILD_DIR --roots DIR --output FILE.addon',
  summary: 'Put a signed add-on and the root chain into one file, and verify it.',
  options: {
    roots: { type: 'string', value: 'DIR', help: 'folder of N.json root statements' },
    output: { type: 'string', value: 'FILE', help: 'the add-on' },
  },
  run: async (call) => {
    const output = resolve(requiredOption(call, 'output'))
    if (existsSync(output)) throw publisherErrors.OUTPUT_EXISTS(`${output} exists already`)
    const roots = await readRoots(requiredOption(call, 'roots'))
    const statement = await packAddon(resolve(onePositional(call, 'BUILD_DIR')), roots, output)
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, output, statement }))
    else call.terminal.out(`${output}: ${statement.name}, expires ${statement.expires}`)
    return 0
  },
}

export const addonVerbs: readonly Verb[] = [
  buildVerb,
  {
    ...signVerb,
    name: 'addon sign',
    usage: 'addon sign BUILD_DIR --key KEY…',
    summary: 'Sign an add-on with a release key.',
  },
  packVerb,
]
