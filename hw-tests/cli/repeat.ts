import { seconds } from '../harness/record.ts'
import { countsText, type Outcome, tally, testKey } from '../report/outcome.ts'

/** `npm run hil -- repeat N …`: the same tests again and again, each run with a seed of its own, to find those that fail now and then. */

export interface Repetition {
  readonly seed: number
  /** Milliseconds. */
  readonly ms: number
  readonly outcomes: readonly Outcome[]
}

/** "run 3 of 20, seed 7: 2 passed, 0 failed, …; 4 boots, 1 power cut, 61.0 s" */
export function repetitionText(repetition: Repetition, number: number, of: number): string {
  const { passed, failed, lab } = tally(repetition.outcomes)
  const what = `${passed} passed, ${failed} failed, ${lab} not run (lab); ${countsText(repetition.outcomes)}`
  return `run ${number} of ${of}, seed ${repetition.seed}: ${what}, ${seconds(repetition.ms)} s`
}

/**
 * What all runs say together: the tests that did not always end in the same way, with their seeds. A test that fails in
 * each run is no flake but broken, and is named as that. Pure.
 */
export function flakeText(runs: readonly Repetition[]): { readonly good: boolean; readonly lines: readonly string[] } {
  const ends = new Map<string, { readonly seed: number; readonly verdict: Outcome['verdict'] }[]>()
  for (const { seed, outcomes } of runs)
    for (const outcome of outcomes) {
      const { verdict } = outcome
      if (verdict === 'skipped') continue
      const key = testKey(outcome)
      ends.set(key, [...(ends.get(key) ?? []), { seed, verdict }])
    }
  const lines: string[] = []
  let flakes = 0
  for (const [key, all] of ends) {
    const bad = all.filter(({ verdict }) => verdict !== 'passed')
    if (bad.length === 0) continue
    const always = bad.length === all.length
    if (!always) flakes++
    const seeds = bad.map(({ seed, verdict }) => `${verdict} with seed ${seed}`).join(', ')
    lines.push(`${always ? 'broken' : 'flake'}: ${key}: ${bad.length} of ${all.length}: ${seeds}`)
  }
  const tests = [...ends.values()].reduce((sum, { length }) => sum + length, 0)
  lines.push(
    `${runs.length} runs, ${tests} tests, ${countsText(runs.flatMap(({ outcomes }) => outcomes))}: ${flakes} flakes`,
  )
  return { good: lines.length === 1 && tests > 0, lines }
}
