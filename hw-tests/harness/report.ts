import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { BootState } from './boot-states.ts'

/** What a failed test shows, and where its transcript lies. */

/**
 * The folder of this run, `out/hil/TIME-PID`: transcripts and reports. Whoever asks first names it; processes started later
 * get it by `HIL_RUN`.
 */
export function runFolder(root: string, env: NodeJS.ProcessEnv): string {
  const stamp = () => new Date().toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '-')
  env['HIL_RUN'] ??= join(root, 'out', 'hil', `${stamp()}-${process.pid}`)
  mkdirSync(env['HIL_RUN'], { recursive: true })
  return env['HIL_RUN']
}

/** In a run's folder: why no test could begin, when the lab was broken before the first of them. */
export function labErrorFile(folder: string): string {
  return join(folder, 'lab-error.txt')
}

/** In the folder of a run that is a part of one: tests ("FILE NAME") that have ended in another part. */
export function doneFile(folder: string): string {
  return join(folder, 'done.json')
}

/** Whether a test has ended in another part of this run, and need not run again. */
export function isDone(folder: string, file: string, name: string): boolean {
  const list = doneFile(folder)
  return existsSync(list) && (JSON.parse(readFileSync(list, 'utf8')) as readonly string[]).includes(`${file} ${name}`)
}

/** "suites/fall-back.hil.ts", "unhealthy: falls back" -> "fall-back/unhealthy-falls-back.log" */
export function transcriptPath(file: string, test: string): string {
  const plain = (text: string) =>
    text
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-|-$/g, '')
      .slice(0, 80)
  const name = (file.split('/').at(-1) ?? file).replace(/(\.hil|\.test)?\.ts$/, '')
  return `${plain(name)}/${plain(test)}.log`
}

export interface FailureFacts {
  readonly place: string
  readonly state: BootState
  readonly tail: string
  readonly transcript: string
  readonly file: string
  readonly test: string
}

/** The text behind a failure's own message: where the device stood, what it said last, how to get there by hand. */
export function failureText(facts: FailureFacts): string {
  const name = facts.test.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replace(/'/g, '.')
  return [
    '',
    `device on ${facts.place}, state: ${facts.state}; seconds since power-on, last console lines:`,
    facts.tail,
    `transcript: ${facts.transcript}`,
    `again:      HIL_PLACE=${facts.place} npx vitest run --project hw ${facts.file} -t '${name}'`,
    `by hand:    npm run hil -- console ${facts.place}`,
  ].join('\n')
}
