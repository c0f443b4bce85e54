import { describe, expect, it } from 'vitest'
import type { Outcome } from '../report/outcome.ts'
import { flakeText, type Repetition, repetitionText } from './repeat.ts'

const outcome = (name: string, verdict: Outcome['verdict']): Outcome => ({
  file: 'x.hil.ts',
  name,
  verdict,
  ms: 1000,
  errors: [],
  note: undefined,
  record: undefined,
})
const run = (seed: number, ...outcomes: Outcome[]): Repetition => ({ seed, ms: 61_000, outcomes })

describe('tests that are run again and again', () => {
  it('are good when every one passed in every run; names with seeds are one test', () => {
    const runs = [1, 2].map((seed) =>
      run(seed, outcome('boots', 'passed'), outcome(`4 power cuts, seed ${seed}: works`, 'passed')),
    )
    expect(flakeText(runs)).toEqual({ good: true, lines: ['2 runs, 4 tests, 0 boots, 0 power cuts: 0 flakes'] })
    expect(repetitionText(run(7, outcome('boots', 'passed')), 1, 2)).toBe(
      'run 1 of 2, seed 7: 1 passed, 0 failed, 0 not run (lab); 0 boots, 0 power cuts, 61.0 s',
    )
  })

  it('tell a flake from what is broken, each with its seeds, and a broken lab from both', () => {
    const runs = [
      run(1, outcome('cut and 20 ms', 'failed'), outcome('boots', 'failed'), outcome('other', 'skipped')),
      run(2, outcome('cut and 30 ms', 'passed'), outcome('boots', 'failed'), outcome('other', 'skipped')),
      run(3, outcome('cut and 40 ms', 'lab'), outcome('boots', 'failed'), outcome('other', 'skipped')),
    ]
    expect(flakeText(runs)).toEqual({
      good: false,
      lines: [
        'flake: x.hil.ts: cut and N ms: 2 of 3: failed with seed 1, lab with seed 3',
        'broken: x.hil.ts: boots: 3 of 3: failed with seed 1, failed with seed 2, failed with seed 3',
        '3 runs, 6 tests, 0 boots, 0 power cuts: 1 flakes',
      ],
    })
  })

  it('that never ran are no proof', () => {
    expect(flakeText([run(1, outcome('boots', 'skipped'))]).good).toBe(false)
    expect(flakeText([run(1)]).good).toBe(false)
  })
})
