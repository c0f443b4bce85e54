import { countsOf, seconds } from '../harness/record.ts'
import { type Outcome, tally, testKey } from '../report/outcome.ts'

/** `npm run hil -- repeat N …`: the same tests again and again, each run with a seed of its own, to find those that fail now and then. */

export interface Repetition {
  readonly seed: number
  /** Milliseconds. */
  readonly ms: number
  readonly outcomes: readonly Outcome[]
  /** Errors outside of tests. */
  readonly stray: number
  /** Of how many calls it is made. */
  readonly parts: number
}

/** A run that is over, as a line of `runs.jsonl`. */
export interface RunLine {
  readonly run: number
  readonly seed: number
  /** What was tested, such as a commit. */
  readonly of?: string
  readonly passed: number
  readonly failed: number
  /** Not run: the lab was broken. */
  readonly lab: number
  readonly skipped: number
  /** Errors outside of tests, such as a file that does not load. */
  readonly stray: number
  readonly boots: number
  readonly cuts: number
  /** Wall time from the beginning of the first test to the end of the last, in each part; without what was cut. */
  readonly seconds: number
  readonly parts: number
  /** Each test's file and name, and how it ended. */
  readonly tests: Readonly<Record<string, Outcome['verdict']>>
}

/** Which of several ends of one test counts. */
export const BADNESS = { skipped: 0, passed: 1, lab: 2, failed: 3 } as const satisfies Record<
  Outcome['verdict'],
  number
>

/** Pure. */
export function lineOf(repetition: Repetition, run: number, of?: string): RunLine {
  const { seed, ms, outcomes, stray, parts } = repetition
  const counts = countsOf(outcomes.flatMap(({ record }) => record ?? []))
  const tests: Record<string, Outcome['verdict']> = {}
  // Tests whose names differ in a seed only are one: the worst of them counts.
  for (const outcome of [...outcomes].sort((a, b) => BADNESS[a.verdict] - BADNESS[b.verdict]))
    tests[testKey(outcome)] = outcome.verdict
  const said = of === undefined ? {} : { of }
  return { run, seed, ...said, ...tally(outcomes), stray, ...counts, seconds: Number(seconds(ms)), parts, tests }
}

export interface SeriesText {
  /** Every test of every run passed, and there was one. */
  readonly good: boolean
  /** Only the lab was at fault. */
  readonly onlyLab: boolean
  readonly lines: readonly string[]
}

/**
 * What all runs say together: a table, then the tests that did not always end in the same way, with their seeds. A test that
 * fails in each run is no flake but broken, and is named as that. Pure.
 */
export function seriesText(runs: readonly RunLine[]): SeriesText {
  const ends = new Map<string, { readonly seed: number; readonly verdict: Outcome['verdict'] }[]>()
  for (const { seed, tests } of runs)
    for (const [key, verdict] of Object.entries(tests)) {
      if (verdict === 'skipped') continue
      ends.set(key, [...(ends.get(key) ?? []), { seed, verdict }])
    }
  const lines = [...table(runs)]
  let flakes = 0
  let bad = runs.filter(({ stray }) => stray > 0).length
  let onlyLab = bad === 0
  for (const { seed, stray } of runs.filter((run) => run.stray > 0))
    lines.push(`errors outside of tests: ${stray} with seed ${seed}`)
  for (const [key, all] of ends) {
    const wrong = all.filter(({ verdict }) => verdict !== 'passed')
    if (wrong.length === 0) continue
    bad++
    if (wrong.some(({ verdict }) => verdict === 'failed')) onlyLab = false
    const always = wrong.length === all.length
    if (!always) flakes++
    const seeds = wrong.map(({ seed, verdict }) => `${verdict} with seed ${seed}`).join(', ')
    lines.push(`${always ? 'broken' : 'flake'}: ${key}: ${wrong.length} of ${all.length}: ${seeds}`)
  }
  const tests = [...ends.values()].reduce((sum, { length }) => sum + length, 0)
  const total = (what: (run: RunLine) => number) => runs.reduce((sum, run) => sum + what(run), 0)
  const counts = `${total(({ boots }) => boots)} boots, ${total(({ cuts }) => cuts)} power cuts`
  lines.push(`${runs.length} runs, ${tests} tests, ${counts}; ${timesText(runs)}: ${flakes} flakes`)
  return { good: bad === 0 && tests > 0, onlyLab: bad > 0 && onlyLab, lines }
}

const COLUMNS = ['run', 'seed', 'passed', 'failed', 'lab', 'skipped', 'boots', 'cuts', 'seconds', 'parts'] as const

function table(runs: readonly RunLine[]): readonly string[] {
  const rows = [COLUMNS, ...runs.map((run) => COLUMNS.map((column) => `${run[column]}`))]
  const widths = COLUMNS.map((_, n) => Math.max(...rows.map((row) => row[n]?.length ?? 0)))
  const ofAll = new Set(runs.map(({ of }) => of ?? ''))
  // Said once when it is always the same.
  const tail = (run: RunLine | undefined) => (ofAll.size > 1 ? `  ${run === undefined ? 'of' : (run.of ?? '')}` : '')
  return rows.map((row, n) => row.map((cell, c) => cell.padStart(widths[c] ?? 0)).join('  ') + tail(runs[n - 1]))
}

/** "median 61.0 s, 60.2 to 75.4" */
function timesText(runs: readonly RunLine[]): string {
  const sorted = runs.map((run) => run.seconds).sort((a, b) => a - b)
  const middle = sorted[Math.floor(sorted.length / 2)]
  if (middle === undefined) return 'no time'
  return `median ${middle.toFixed(1)} s, ${(sorted[0] ?? 0).toFixed(1)} to ${(sorted.at(-1) ?? 0).toFixed(1)}`
}

export interface RepeatWords {
  /** Undefined: it is no whole number above zero. */
  readonly times: number | undefined
  readonly folder: string | undefined
  readonly seconds: number | undefined
  readonly short: boolean
  /** What vitest gets. */
  readonly rest: readonly string[]
}

/** Reads "N [--folder FOLDER] [--for SECONDS] [--short] …". Pure. */
export function readRepeat(args: readonly string[]): RepeatWords {
  const rest: string[] = []
  let folder: string | undefined
  let seconds: number | undefined
  let short = false
  for (let at = 1; at < args.length; at++) {
    const word = args[at] ?? ''
    if (word === '--folder') folder = args[++at]
    else if (word === '--for') seconds = Number(args[++at])
    else if (word === '--short') short = true
    else rest.push(word)
  }
  const times = Number(args[0])
  const sane = Number.isInteger(times) && times >= 1 && (seconds === undefined || seconds > 0)
  return { times: sane ? times : undefined, folder, seconds, short, rest }
}

/** The words before the first option: which files. Pure. */
export function positionals(args: readonly string[]): readonly string[] {
  const first = args.findIndex((word) => word.startsWith('-'))
  return first < 0 ? args : args.slice(0, first)
}
