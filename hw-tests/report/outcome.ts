import { countsOf, seconds, type TestRecord } from '../harness/record.ts'

/** One test's outcome, as all reports take it. `lab`: nothing was found out about the product. */
export interface Outcome {
  /** Path of the test file in the repository. */
  readonly file: string
  readonly name: string
  readonly verdict: 'passed' | 'failed' | 'lab' | 'skipped'
  /** Milliseconds. */
  readonly ms: number
  /** When it ended, ISO 8601. */
  readonly at?: string
  readonly errors: readonly { readonly name: string; readonly message: string }[]
  /** Why it was skipped. */
  readonly note: string | undefined
  readonly record: TestRecord | undefined
}

export interface Run {
  /** Name of the run's folder. */
  readonly id: string
  readonly place: string
  /** ISO 8601. */
  readonly began: string
  /** Milliseconds. */
  readonly ms: number
  /** Errors outside of tests, such as a file that could not be loaded. */
  readonly stray: readonly string[]
  readonly outcomes: readonly Outcome[]
  /** Names of the runs that were put together; their times are added up. */
  readonly parts?: readonly string[]
}

/** A lab error anywhere among a test's errors means that its other errors say nothing about the product either. */
export function verdictOf(
  state: 'passed' | 'failed' | 'skipped' | 'pending',
  errors: readonly { readonly name?: string | undefined }[],
): Outcome['verdict'] {
  if (state === 'passed') return 'passed'
  if (state !== 'failed') return 'skipped'
  return errors.some(({ name }) => name === 'LabError') ? 'lab' : 'failed'
}

export function tally(outcomes: readonly Outcome[]): Readonly<Record<Outcome['verdict'], number>> {
  const counts = { passed: 0, failed: 0, lab: 0, skipped: 0 }
  for (const { verdict } of outcomes) counts[verdict]++
  return counts
}

/** "12 passed, 1 failed, 2 not run (lab), 0 skipped" */
export function tallyText(outcomes: readonly Outcome[]): string {
  const { passed, failed, lab, skipped } = tally(outcomes)
  return `${passed} passed, ${failed} failed, ${lab} not run (lab), ${skipped} skipped`
}

/** What a run ends with: 0 good, 1 a test failed, 3 the lab is broken and no test failed. */
export function exitCode(good: boolean, outcomes: readonly Outcome[], labBroken = false): 0 | 1 | 3 {
  if (good) return 0
  const { lab, failed } = tally(outcomes)
  return failed === 0 && (lab > 0 || labBroken) ? 3 : 1
}

/** A test's file and name. Seeds and moments are a part of some names, and another in each run. */
export function testKey({ file, name }: Pick<Outcome, 'file' | 'name'>): string {
  return `${file}: ${name.replace(/\bseed \d+/, 'seed N').replace(/\b\d+ ms\b/, 'N ms')}`
}

/** "14 boots, 3 power cuts" */
export function countsText(outcomes: readonly Outcome[]): string {
  const { boots, cuts } = countsOf(outcomes.flatMap(({ record }) => record ?? []))
  const counted = (count: number, what: string) => `${count} ${what}${count === 1 ? '' : 's'}`
  return `${counted(boots, 'boot')}, ${counted(cuts, 'power cut')}`
}

/** What a run ends with: "12 passed, … on qemu-x86-grub; 14 boots, 3 power cuts, 601.2 s" */
export function runText({ outcomes, place, ms, parts }: Run): string {
  const of = parts === undefined ? '' : ` in ${parts.length} parts`
  return `${tallyText(outcomes)} on ${place}; ${countsText(outcomes)}, ${seconds(ms)} s${of}`
}

/** Long text without its middle: what failed stands first, what the device said last. */
export function bounded(text: string, most: number): string {
  if (text.length <= most) return text
  const half = Math.floor(most / 2)
  return `${text.slice(0, half)}\n[${text.length - 2 * half} characters are left out]\n${text.slice(-half)}`
}

/** Text for XML and HTML: the five characters escaped, what XML 1.0 forbids dropped. */
export function escaped(text: string): string {
  const entities: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&#39;',
  }
  return text
    .replace(/\x1b\[[0-9;?]*[A-Za-z]/g, '')
    .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, '')
    .replace(/[&<>"']/g, (c) => entities[c] ?? c)
}
