import { type ParseArgsConfig, parseArgs } from 'node:util'
import { BistableError, defineErrors, EXIT, systemCode, systemReason } from './errors.ts'
import { fileErrors } from './file-errors.ts'
import { nearest } from './nearest.ts'
import { printableLines } from './printable.ts'

/** The command line: verbs are a table, options are declared, every outcome is a code. */

export const cliErrors = defineErrors({
  USAGE: { family: 'usage', meaning: 'The command line is not understood.', next: 'Run the command with --help.' },
})

export interface OptionSpec {
  readonly type: 'string' | 'boolean'
  readonly short?: string
  readonly multiple?: boolean
  /** Shown in --help. */
  readonly help: string
  /** Placeholder for the value in --help: "FILE". */
  readonly value?: string
}

export interface Terminal {
  readonly out: (line: string) => void
  readonly err: (line: string) => void
  /** True when standard error is a terminal: progress bars; else plain lines. */
  readonly interactive: boolean
}

export interface Invocation {
  readonly positionals: readonly string[]
  readonly options: Readonly<Record<string, string | boolean | readonly string[] | undefined>>
  readonly json: boolean
  readonly terminal: Terminal
  /** Aborted by SIGINT and SIGTERM. */
  readonly signal: AbortSignal
}

export interface Verb {
  readonly name: string
  /** "install <file|url>" */
  readonly usage: string
  /** One line for the list of verbs. */
  readonly summary: string
  readonly options?: Readonly<Record<string, OptionSpec>>
  /** Prints through the terminal; returns the exit code (0 unless the verb says otherwise). */
  readonly run: (call: Invocation) => Promise<number>
}

export function stringOption(call: Invocation, name: string): string | undefined {
  const value = call.options[name]
  return typeof value === 'string' ? value : undefined
}

export function requiredOption(call: Invocation, name: string): string {
  const value = stringOption(call, name)
  if (value === undefined) throw cliErrors.USAGE(`--${name} is missing`)
  return value
}

/**
 * Splits argv into verb and options, runs it, prints errors in one form, returns the exit code.
 *
 * Names from images, bundles and servers reach messages and lists: nothing that is printed can move the cursor, turn
 * the direction of writing or colour the terminal.
 */
export async function runCli(
  verbs: readonly Verb[],
  argv: readonly string[],
  given: Terminal,
  signal: AbortSignal,
): Promise<number> {
  const json = argv.includes('--json')
  const terminal: Terminal = {
    out: (text) => given.out(printableLines(text)),
    err: (text) => given.err(printableLines(text)),
    interactive: given.interactive,
  }
  try {
    const found = findVerb(verbs, argv)
    if (found === undefined) {
      if (argv.length === 0 || argv[0] === '--help' || argv[0] === 'help') {
        terminal.out(overview(verbs))
        return argv.length === 0 ? 2 : 0
      }
      const typed = argv.slice(0, 2)
      const names = verbs.map(({ name }) => name)
      const meant = nearest(typed.join(' '), names) ?? nearest(typed[0] ?? '', names)
      const next = meant === undefined ? {} : { next: `Did you mean '${meant}'? --help lists all commands.` }
      throw cliErrors.USAGE(`'${typed.join(' ')}' is not a command`, next)
    }
    const [verb, rest] = found
    if (rest.includes('--help')) {
      terminal.out(verbHelp(verb))
      return 0
    }
    const { values, positionals } = parse(verb, rest)
    return await verb.run({ positionals, options: values, json, terminal, signal })
  } catch (error) {
    return printError(error, json, terminal)
  }
}

function findVerb(verbs: readonly Verb[], argv: readonly string[]): [Verb, string[]] | undefined {
  // Two-word verbs ("keys init") win over one-word ones.
  for (const words of [2, 1]) {
    const verb = verbs.find((v) => v.name === argv.slice(0, words).join(' '))
    if (verb !== undefined) return [verb, argv.slice(words)]
  }
  return undefined
}

function parse(verb: Verb, rest: string[]): { values: Invocation['options']; positionals: string[] } {
  const options: Record<string, { type: 'string' | 'boolean'; short?: string; multiple?: boolean }> = {
    json: { type: 'boolean' },
  }
  for (const [name, spec] of Object.entries(verb.options ?? {})) {
    options[name] = { type: spec.type }
    if (spec.short !== undefined) options[name].short = spec.short
    if (spec.multiple !== undefined) options[name].multiple = spec.multiple
  }
  const next = `Run 'bistable ${verb.name} --help'.`
  const { values, positionals } = parsed(rest, options, next)
  // A variable that is not set, most often; as a path it would be the present folder.
  const empty = Object.entries(values).find(([, value]) => [value].flat().includes(''))
  if (empty !== undefined) throw cliErrors.USAGE(`--${empty[0]} is empty`, { next })
  if (positionals.includes('')) throw cliErrors.USAGE(`argument ${positionals.indexOf('') + 1} is empty`, { next })
  return { values: values as Invocation['options'], positionals }
}

function parsed(args: string[], options: NonNullable<ParseArgsConfig['options']>, next: string) {
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true })
  } catch (error) {
    const sentence = error instanceof Error ? error.message : String(error)
    throw cliErrors.USAGE(sentence, { cause: error, next })
  }
}

const REPORT = 'This is a defect of bistable: please report it, with these lines.'

/** Prints one error as text or JSON and returns its exit code. */
function printError(thrown: unknown, json: boolean, terminal: Terminal): number {
  const error = fileFailure(thrown) ?? thrown
  if (error instanceof BistableError) {
    if (json) terminal.out(JSON.stringify({ ok: false, error: error.toJSON() }))
    else printSentence(terminal, error.code, error.message, error.next)
    return error.exitCode
  }
  const message = error instanceof Error ? error.message : String(error)
  const stack = error instanceof Error ? (error.stack ?? '').split('\n').filter((line) => /^ +at /.test(line)) : []
  if (json) {
    const internal = { code: 'INTERNAL', family: 'internal', message, next: REPORT, details: { stack } }
    terminal.out(JSON.stringify({ ok: false, error: internal }))
  } else {
    printSentence(terminal, 'INTERNAL', message, REPORT)
    for (const line of stack) terminal.err(line)
  }
  return EXIT.internal
}

/** What the system says of an open file, whose path it does not say then. */
const STORAGE = ['ENOSPC', 'EDQUOT', 'EIO', 'EROFS', 'EFBIG']

/** A file that the system refused and nobody expected: a folder that is not there, a full disk. */
function fileFailure(error: unknown): BistableError | undefined {
  if (!(error instanceof Error && 'syscall' in error)) return undefined
  const system = systemCode(error) ?? ''
  if (!('path' in error) && !STORAGE.includes(system)) return undefined
  const code = system === 'ENOSPC' || system === 'EDQUOT' ? 'FILE_FULL' : 'FILE_FAILED'
  const what = 'path' in error ? `use '${error.path}'` : `${error.syscall} a file`
  return fileErrors[code](`cannot ${what}: ${systemReason(error)}`, { cause: error })
}

function printSentence(terminal: Terminal, code: string, sentence: string, next: string): void {
  terminal.err(`bistable: ${code}: ${indented(sentence)}`)
  terminal.err(`  next: ${next}`)
}

/** Further lines stand deeper than ours, so that no name with a line break in it can forge one. */
function indented(text: string): string {
  return text.replace(/\n */g, '\n    ')
}

function overview(verbs: readonly Verb[]): string {
  const width = Math.max(...verbs.map((v) => v.name.length))
  const lines = verbs.map((v) => `  ${v.name.padEnd(width)}  ${v.summary}`)
  return [
    'usage: bistable <command> [options] [--json]',
    '',
    ...lines,
    '',
    "'bistable <command> --help' tells more.",
  ].join('\n')
}

function verbHelp(verb: Verb): string {
  const rows = Object.entries(verb.options ?? {}).map(([name, spec]) => {
    const left = `--${name}${spec.type === 'string' ? ` ${spec.value ?? 'VALUE'}` : ''}`
    return `  ${left.padEnd(28)} ${spec.help}`
  })
  return [
    `usage: bistable ${verb.usage}`,
    '',
    verb.summary,
    '',
    ...rows,
    `  ${'--json'.padEnd(28)} print one JSON object`,
  ].join('\n')
}
