import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LabError } from '../harness/lab-error.ts'
import { doneFile, labErrorFile } from '../harness/report.ts'
import { readOutcomes } from '../report/merge.ts'
import type { Outcome } from '../report/outcome.ts'
import { type EndedFile, readEnded } from '../report/reporter.ts'
import { BADNESS, lineOf, type Repetition, type RunLine } from './repeat.ts'

/**
 * A series of runs that is kept in a folder, so that it can be cut at any moment and gone on with by another call:
 *
 *     repeat.json    how many times, the first seed, which tests
 *     runs.jsonl     a line for each run that is over
 *     RUN/PART/      the report of one part of a run: what ran until it was over or cut
 *
 * What counts is a test that has ended. One that was cut in the middle runs again from its start, with the same seed.
 */

export interface SeriesPlan {
  /** Where the tests run. */
  readonly place: string
  readonly times: number
  /** Of the first run; each later one has the next. */
  readonly seed: number
  /** Arguments of vitest: which tests. */
  readonly args: readonly string[]
  /** What `npm test` runs, without the long ones. */
  readonly short: boolean
}

export interface SeriesOptions {
  readonly folder: string
  readonly plan: SeriesPlan
  /** The test files of a run. */
  readonly files: readonly string[]
  /** How many files run side by side. */
  readonly workers: number
  /** Milliseconds of `now` by which what is started should be over. */
  readonly until?: number
  readonly now: () => number
  /**
   * Runs these files with this seed, its reports going to `folder`, where `done.json` says which tests need not run again. Ends
   * with the exit code, or undefined when it was killed.
   */
  readonly run: (files: readonly string[], folder: string, seed: number) => Promise<number | undefined>
  readonly say: (line: string) => void
  /** What is tested, such as a commit. */
  readonly of?: string
}

interface PartFile {
  /** ISO 8601. */
  readonly began: string
  /** What vitest ended with, of a part that was not cut. */
  readonly code?: number
}

interface Part extends PartFile {
  readonly ended: readonly EndedFile[]
  readonly outcomes: readonly Outcome[]
}

/** The plan of a series that was begun in this folder. @throws LabError when what is there is none */
export async function readPlan(folder: string): Promise<SeriesPlan | undefined> {
  const file = join(folder, 'repeat.json')
  if (!existsSync(file)) return undefined
  try {
    return JSON.parse(await readFile(file, 'utf8')) as SeriesPlan
  } catch (cause) {
    throw new LabError(`${file} is no plan of runs; take another folder`, { cause })
  }
}

/** The lines of the runs that are over. */
export async function readLines(folder: string): Promise<readonly RunLine[]> {
  const text = await readFile(join(folder, 'runs.jsonl'), 'utf8').catch(() => '')
  // One that was being written when the power went has no end.
  const whole = text.slice(0, text.lastIndexOf('\n') + 1).split('\n')
  return whole.filter((line) => line !== '').map((line) => JSON.parse(line) as RunLine)
}

/** Goes on until all runs are over or the time is. Returns the lines of those that are. @throws LabError */
export async function goOn(options: SeriesOptions): Promise<readonly RunLine[]> {
  const { folder, plan, until, now, say } = options
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'repeat.json'), `${JSON.stringify(plan, null, 2)}\n`)
  const lines = [...(await readLines(folder))]
  await writeFile(join(folder, 'runs.jsonl'), lines.map(text).join(''))
  const known = await durations(folder)
  let first = true
  while (lines.length < plan.times) {
    const number = lines.length + 1
    const own = join(folder, `${number}`)
    const left = remaining(options.files, await readParts(own))
    if (left.length > 0) {
      const chosen = until === undefined ? left : fitting(left, known, options.workers, until - now(), first)
      first = false
      if (chosen.length === 0) break
      for (const { file, ms } of await runPart(options, own, chosen, plan.seed + number - 1)) known.set(file, ms)
      continue
    }
    const line = lineOf(await repetition(own, plan.seed + number - 1), number, options.of)
    lines.push(line)
    await writeFile(join(folder, 'runs.jsonl'), lines.map(text).join(''))
    say(
      `run ${number} of ${plan.times}, seed ${line.seed}: ${line.passed} passed, ${line.failed} failed, ${line.lab} not run`,
    )
  }
  return lines
}

const text = (line: RunLine) => `${JSON.stringify(line)}\n`

/** One part of a run. @throws LabError when it was killed, or the lab was broken before its first test */
async function runPart(
  { run, now }: SeriesOptions,
  own: string,
  files: readonly string[],
  seed: number,
): Promise<readonly EndedFile[]> {
  const part = join(own, `${(await numbered(own)).length + 1}`)
  await mkdir(part, { recursive: true })
  const before = counted(await readParts(own))
  await writeFile(doneFile(part), JSON.stringify(before.map(({ file, name }) => `${file} ${name}`)))
  const began = new Date(now()).toISOString()
  const keep = (file: PartFile) => writeFile(join(part, 'part.json'), `${JSON.stringify(file)}\n`)
  await keep({ began })
  const code = await run(files, part, seed)
  if (code === undefined) throw new LabError('the run was killed; the same command goes on with it')
  if (existsSync(labErrorFile(part))) throw new LabError((await readFile(labErrorFile(part), 'utf8')).trim())
  const ended = await readEnded(part)
  const silent = files.filter((file) => !ended.some((one) => one.file === file))
  // It would be started again and again.
  if (silent.length > 0) throw new LabError(`vitest ended with ${code} and ran none of ${silent.join(', ')}`)
  await keep({ began, code })
  return ended
}

/** Files that have not ended in any part, in their order. Pure. */
function remaining(files: readonly string[], parts: readonly Part[]): readonly string[] {
  const ended = new Set(parts.flatMap((part) => part.ended.map(({ file }) => file)))
  return files.filter((file) => !ended.has(file))
}

/**
 * Those of the files that end within `ms` when `workers` run side by side, by how long each took before; one that never ran is
 * started whatever it takes. With `atLeastOne`, the shortest is started even if it does not fit. Pure.
 */
export function fitting(
  files: readonly string[],
  known: ReadonlyMap<string, number>,
  workers: number,
  ms: number,
  atLeastOne: boolean,
): readonly string[] {
  const takes = (file: string) => known.get(file) ?? 0
  const loads = Array.from({ length: workers }, () => 0)
  const chosen = new Set<string>()
  for (const file of [...files].sort((a, b) => takes(b) - takes(a))) {
    const least = loads.indexOf(Math.min(...loads))
    const load = (loads[least] ?? 0) + takes(file)
    if (load > ms || ms <= 0) continue
    loads[least] = load
    chosen.add(file)
  }
  const shortest = [...files].sort((a, b) => takes(a) - takes(b))[0]
  if (chosen.size === 0 && atLeastOne && shortest !== undefined) chosen.add(shortest)
  return files.filter((file) => chosen.has(file))
}

/** Names of folders that are numbers, the lowest first. */
async function numbered(folder: string): Promise<readonly string[]> {
  const names = await readdir(folder).catch(() => [])
  return names.filter((name) => /^\d+$/.test(name)).sort((a, b) => Number(a) - Number(b))
}

async function readParts(own: string): Promise<readonly Part[]> {
  const parts: Part[] = []
  for (const name of await numbered(own)) {
    const part = join(own, name)
    const file = await readFile(join(part, 'part.json'), 'utf8').catch(() => undefined)
    if (file === undefined) continue
    const outcomes = await readOutcomes(part).catch(() => [])
    parts.push({ ...(JSON.parse(file) as PartFile), ended: await readEnded(part), outcomes })
  }
  return parts
}

/** How long each file took when it last ended, in milliseconds. */
async function durations(folder: string): Promise<Map<string, number>> {
  const known = new Map<string, number>()
  for (const run of await numbered(folder))
    for (const part of await numbered(join(folder, run)))
      for (const { file, ms } of await readEnded(join(folder, run, part))) known.set(file, ms)
  return known
}

/**
 * The tests that have ended in any of the parts. In a part that was cut, what looks like a broken lab may be the cut itself, and
 * that test runs again. One that ended in several parts, as those do that cannot be left out, counts as the worst of them. Pure.
 */
function counted(parts: readonly Part[]): readonly Outcome[] {
  const tests = new Map<string, Outcome>()
  for (const { code, outcomes } of parts)
    for (const outcome of outcomes) {
      if (outcome.verdict === 'skipped' || (outcome.verdict === 'lab' && code === undefined)) continue
      const key = `${outcome.file} ${outcome.name}`
      const known = tests.get(key)
      if (known === undefined || BADNESS[outcome.verdict] > BADNESS[known.verdict]) tests.set(key, outcome)
    }
  return [...tests.values()]
}

/** What the parts of a run say together. */
async function repetition(own: string, seed: number): Promise<Repetition> {
  const parts = await readParts(own)
  const ran = counted(parts)
  const names = new Set(ran.map(({ file, name }) => `${file} ${name}`))
  const left = parts.flatMap(({ outcomes }) => outcomes).filter(({ verdict }) => verdict === 'skipped')
  const skipped = new Map(left.map((outcome) => [`${outcome.file} ${outcome.name}`, outcome]))
  for (const name of names) skipped.delete(name)
  let ms = 0
  let stray = 0
  for (const { code, ended, outcomes } of parts) {
    const errors = ended.reduce((sum, file) => sum + file.errors, 0)
    const bad = outcomes.some(({ verdict }) => verdict === 'failed' || verdict === 'lab')
    // An exit code that no test explains.
    stray += errors > 0 ? errors : code !== undefined && code !== 0 && !bad ? 1 : 0
    const whole = outcomes.filter(({ verdict }) => verdict !== 'lab' || code !== undefined)
    const spans = whole.flatMap(({ at, ms: took }) =>
      at === undefined ? [] : [[Date.parse(at) - took, Date.parse(at)]],
    )
    if (spans.length > 0)
      ms += Math.max(...spans.map(([, to = 0]) => to)) - Math.min(...spans.map(([from = 0]) => from))
  }
  return { seed, ms, outcomes: [...ran, ...skipped.values()], stray, parts: parts.length }
}
