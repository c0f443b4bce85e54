import { appendFileSync } from 'node:fs'
import { readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { basename, dirname, join, relative } from 'node:path'
import type { SerializedError } from 'vitest'
import type { Reporter, TestCase, TestModule } from 'vitest/node'
import { recordOf } from '../harness/record.ts'
import { runFolder } from '../harness/report.ts'
import { choosePlaceName } from '../places/index.ts'
import { htmlPage } from './html.ts'
import { junitXml } from './junit.ts'
import { bounded, type Outcome, type Run, runText, verdictOf } from './outcome.ts'
import { summaryMarkdown } from './summary.ts'

/**
 * The reports of a hardware-in-the-loop run, in its folder: `run.jsonl` (a line as each test ends), `files.jsonl` (a line as each
 * test file ends), `run.json`, `junit.xml`, `summary.md` (also appended to `$GITHUB_STEP_SUMMARY`) and `index.html`. Tests of
 * other projects are none of its business.
 */

const root = process.cwd()
const MOST_TRANSCRIPT = 4 * 1024 * 1024
/** GitLab takes no JUnit file of more than 30 MB. */
const MOST_MESSAGE = 64 * 1024

// Vitest wants a reporter by its module's default export.
// biome-ignore lint/style/noDefaultExport: see above
export default class HilReporter implements Reporter {
  #began = new Date()
  #outcomes: Outcome[] = []
  readonly #started = new Map<string, number>()

  onTestRunStart(): void {
    this.#began = new Date()
    this.#outcomes = []
  }

  onTestCaseResult(test: TestCase): void {
    if (test.project.name !== 'hw') return
    const outcome = outcomeOf(test)
    this.#outcomes.push(outcome)
    appendFileSync(join(runFolder(root, process.env), 'run.jsonl'), `${JSON.stringify(outcome)}\n`)
  }

  onTestModuleStart({ moduleId }: TestModule): void {
    this.#started.set(moduleId, Date.now())
  }

  onTestModuleEnd(module: TestModule): void {
    if (module.project.name !== 'hw') return
    const now = Date.now()
    const ended: EndedFile = {
      file: relative(root, module.moduleId),
      at: new Date(now).toISOString(),
      ms: now - (this.#started.get(module.moduleId) ?? now),
      errors: module.errors().length,
    }
    appendFileSync(filesOf(runFolder(root, process.env)), `${JSON.stringify(ended)}\n`)
  }

  async onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): Promise<void> {
    const own = modules.filter(({ project }) => project.name === 'hw')
    const stray = [
      ...own.flatMap((module) => module.errors().map((error) => `${module.moduleId}: ${error.stack ?? error.message}`)),
      ...(own.length > 0 ? errors.map((error) => error.stack ?? error.message) : []),
    ]
    if (this.#outcomes.length + stray.length === 0) return
    const folder = runFolder(root, process.env)
    const run: Run = {
      id: basename(folder),
      place: choosePlaceName(process.env['HIL_PLACE']),
      began: this.#began.toISOString(),
      ms: Date.now() - this.#began.getTime(),
      stray,
      outcomes: this.#outcomes,
    }
    await publishReports(folder, run)
  }
}

/** A test file whose last test is over. */
export interface EndedFile {
  /** Path in the repository. */
  readonly file: string
  /** ISO 8601. */
  readonly at: string
  /** Milliseconds since its first test was begun. */
  readonly ms: number
  /** Outside of its tests, such as a file that does not load. */
  readonly errors: number
}

const filesOf = (folder: string) => join(folder, 'files.jsonl')

/** The test files that have ended in a run, also in one that was cut. */
export async function readEnded(folder: string): Promise<readonly EndedFile[]> {
  const text = await readFile(filesOf(folder), 'utf8').catch(() => '')
  const lines = text.slice(0, text.lastIndexOf('\n') + 1).split('\n')
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as EndedFile)
}

/** Writes the reports, also into the step summary of GitHub, and says where they are. */
export async function publishReports(folder: string, run: Run): Promise<void> {
  await writeReports(folder, run)
  const { GITHUB_STEP_SUMMARY: summary } = process.env
  if (summary !== undefined && summary !== '') appendFileSync(summary, summaryMarkdown(run))
  await pointLast(folder)
  console.log(`hil: ${runText(run)}; report: ${relative(process.cwd(), join(folder, 'index.html'))}`)
}

/** What `run.jsonl` does not say about a run. */
export type RunFile = Omit<Run, 'outcomes'>

export async function writeReports(folder: string, run: Run): Promise<void> {
  const transcripts = new Map<string, string>()
  for (const { record } of run.outcomes) {
    if (record === undefined) continue
    const text = await readFile(join(folder, record.transcript), 'utf8').catch(() => undefined)
    if (text !== undefined) transcripts.set(record.transcript, text.slice(-MOST_TRANSCRIPT))
  }
  const { outcomes: _, ...file } = run satisfies RunFile
  await writeFile(join(folder, 'run.json'), `${JSON.stringify(file, null, 2)}\n`)
  // GitLab looks for attachments from the project's folder, Jenkins from its workspace.
  const seen = relative(process.cwd(), folder)
  await writeFile(join(folder, 'junit.xml'), junitXml(run, seen.startsWith('..') ? folder : seen))
  await writeFile(join(folder, 'summary.md'), summaryMarkdown(run))
  await writeFile(join(folder, 'index.html'), htmlPage(run, transcripts))
}

/** `out/hil/last` leads to the newest run. */
async function pointLast(folder: string): Promise<void> {
  const link = join(dirname(folder), 'last')
  await rm(link, { force: true })
  await symlink(basename(folder), link).catch(() => {})
}

function outcomeOf(test: TestCase): Outcome {
  const result = test.result()
  const errors = (result.errors ?? []).map((error) => ({
    name: error.name ?? 'Error',
    message: bounded(error.message, MOST_MESSAGE),
  }))
  return {
    file: relative(root, test.module.moduleId),
    name: test.fullName,
    verdict: verdictOf(result.state, errors),
    ms: Math.round(test.diagnostic()?.duration ?? 0),
    at: new Date().toISOString(),
    errors,
    note: result.state === 'skipped' ? result.note : undefined,
    record: recordOf(test.meta()),
  }
}
