import { cp, mkdir, readFile, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { LabError } from '../harness/lab-error.ts'
import { type Outcome, type Run, testKey } from './outcome.ts'
import type { RunFile } from './reporter.ts'

/** One report of a suite that was run in parts: jobs that ran beside each other, or one after the other. */

/**
 * The outcomes of all parts. A test that a part left out, as with `--shard` or `-t`, and another ran, counts where it ran; one
 * that ran in several parts counts each time. Pure.
 */
export function mergedOutcomes(parts: readonly (readonly Outcome[])[]): readonly Outcome[] {
  const all = parts.flat()
  const ran = new Set(all.filter(({ verdict }) => verdict !== 'skipped').map(testKey))
  const said = new Set<string>()
  return all.filter((outcome) => {
    const key = testKey(outcome)
    if (outcome.verdict !== 'skipped') return true
    if (ran.has(key) || said.has(key)) return false
    said.add(key)
    return true
  })
}

/**
 * Puts these runs' folders together in another one: outcomes, transcripts and times, for one report. Wall times are added
 * up. @throws LabError when a folder is no run, or the runs are of different places
 */
export async function mergeRuns(folders: readonly string[], into: string): Promise<Run> {
  const parts = []
  for (const folder of folders) parts.push({ folder, ...(await readRun(folder)) })
  const places = [...new Set(parts.map(({ file }) => file.place))]
  const [place] = places
  if (place === undefined || places.length > 1)
    throw new LabError(`runs of one place can be put together, these are of ${places.join(', ') || 'none'}`)
  const moved: Outcome[][] = []
  for (const { folder, file, outcomes } of parts) {
    const own: Outcome[] = []
    for (const outcome of outcomes) own.push(await withTranscript(outcome, folder, into, file.id))
    moved.push(own)
  }
  const run: Run = {
    id: basename(into),
    place,
    began: parts.map(({ file }) => file.began).sort()[0] ?? '',
    ms: parts.reduce((sum, { file }) => sum + file.ms, 0),
    stray: parts.flatMap(({ file }) => file.stray),
    outcomes: mergedOutcomes(moved),
    parts: parts.map(({ file }) => file.id),
  }
  await writeFile(join(into, 'run.jsonl'), run.outcomes.map((outcome) => `${JSON.stringify(outcome)}\n`).join(''))
  return run
}

async function readRun(folder: string): Promise<{ readonly file: RunFile; readonly outcomes: readonly Outcome[] }> {
  try {
    const file = JSON.parse(await readFile(join(folder, 'run.json'), 'utf8')) as RunFile
    return { file, outcomes: await readOutcomes(folder) }
  } catch (cause) {
    throw new LabError(`${folder} holds no run that has ended`, { cause })
  }
}

/** What is in a run's `run.jsonl`; a line as each test ended, also of a run that was cut. */
export async function readOutcomes(folder: string): Promise<readonly Outcome[]> {
  const text = await readFile(join(folder, 'run.jsonl'), 'utf8')
  const lines = text.slice(0, text.lastIndexOf('\n') + 1).split('\n')
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as Outcome)
}

/** The outcome with its transcript copied into the part's own folder there. */
async function withTranscript(outcome: Outcome, from: string, into: string, part: string): Promise<Outcome> {
  if (outcome.record === undefined) return outcome
  const transcript = join(part, outcome.record.transcript)
  await mkdir(dirname(join(into, transcript)), { recursive: true })
  // One that is missing is said to be missing by the page.
  await cp(join(from, outcome.record.transcript), join(into, transcript)).catch(() => {})
  return { ...outcome, record: { ...outcome.record, transcript } }
}
