import { describe, expect, it } from 'vitest'
import { LabError } from '../harness/lab-error.ts'
import { testsAtOnce } from '../places/at-once.ts'
import type { Outcome } from '../report/outcome.ts'
import { lineOf, positionals, readRepeat, seriesText } from './repeat.ts'

const outcome = (name: string, verdict: Outcome['verdict']): Outcome => ({
  file: 'x.hil.ts',
  name,
  verdict,
  ms: 1000,
  errors: [],
  note: undefined,
  record: undefined,
})
const run = (seed: number, ...outcomes: Outcome[]) =>
  lineOf({ seed, ms: 60_000 + 1000 * seed, outcomes, stray: 0, parts: 1 }, seed, 'abc1234')

describe('tests that are run again and again', () => {
  it('are good when every one passed in every run; names with seeds are one test', () => {
    const runs = [1, 2].map((seed) =>
      run(seed, outcome('boots', 'passed'), outcome(`4 power cuts, seed ${seed}: works`, 'passed')),
    )
    expect(seriesText(runs)).toEqual({
      good: true,
      onlyLab: false,
      lines: [
        'run  seed  passed  failed  lab  skipped  boots  cuts  seconds  parts',
        '  1     1       2       0    0        0      0     0       61      1',
        '  2     2       2       0    0        0      0     0       62      1',
        '2 runs, 4 tests, 0 boots, 0 power cuts; median 62.0 s, 61.0 to 62.0: 0 flakes',
      ],
    })
    expect(runs[0]?.tests).toEqual({
      'x.hil.ts: boots': 'passed',
      'x.hil.ts: 4 power cuts, seed N: works': 'passed',
    })
  })

  it('tell a flake from what is broken, each with its seeds, and a broken lab from both', () => {
    const runs = [
      run(1, outcome('cut and 20 ms', 'failed'), outcome('boots', 'failed'), outcome('other', 'skipped')),
      run(2, outcome('cut and 30 ms', 'passed'), outcome('boots', 'failed'), outcome('other', 'skipped')),
      run(3, outcome('cut and 40 ms', 'lab'), outcome('boots', 'failed'), outcome('other', 'skipped')),
    ]
    const { lines, ...said } = seriesText(runs)
    expect(said).toEqual({ good: false, onlyLab: false })
    expect(lines.slice(4)).toEqual([
      'flake: x.hil.ts: cut and N ms: 2 of 3: failed with seed 1, lab with seed 3',
      'broken: x.hil.ts: boots: 3 of 3: failed with seed 1, failed with seed 2, failed with seed 3',
      '3 runs, 6 tests, 0 boots, 0 power cuts; median 62.0 s, 61.0 to 63.0: 1 flakes',
    ])
    expect(seriesText([run(1, outcome('boots', 'lab'))])).toMatchObject({ good: false, onlyLab: true })
  })

  it('of one name, the worst counts', () => {
    const cuts = [outcome('cut and 20 ms', 'failed'), outcome('cut and 30 ms', 'passed')]
    expect(run(1, ...cuts).tests).toEqual({ 'x.hil.ts: cut and N ms': 'failed' })
  })

  it('that never ran are no proof, nor is a run with errors outside of tests', () => {
    expect(seriesText([run(1, outcome('boots', 'skipped'))]).good).toBe(false)
    expect(seriesText([run(1)]).good).toBe(false)
    expect(seriesText([]).lines.at(-1)).toBe('0 runs, 0 tests, 0 boots, 0 power cuts; no time: 0 flakes')
    const stray = lineOf({ seed: 7, ms: 1000, outcomes: [outcome('boots', 'passed')], stray: 1, parts: 1 }, 1)
    expect(seriesText([stray])).toMatchObject({ good: false, onlyLab: false })
    expect(seriesText([stray]).lines).toContain('errors outside of tests: 1 with seed 7')
  })

  it('of several states of the sources say which', () => {
    const runs = [run(1, outcome('boots', 'passed')), { ...run(2, outcome('boots', 'passed')), of: 'def5678' }]
    expect(
      seriesText(runs)
        .lines.slice(0, 3)
        .map((line) => line.slice(-9)),
    ).toEqual([...['parts  of', '  abc1234', '  def5678']])
  })
})

describe('the words of repeat', () => {
  it('are its own, then files, then options of vitest', () => {
    expect(readRepeat(['20', '--folder', 'f', '--short', 'a.hil', 'b.hil', '-t', 'boots'])).toEqual({
      ...{ times: 20, folder: 'f', seconds: undefined, short: true },
      rest: ['a.hil', 'b.hil', '-t', 'boots'],
    })
    expect(readRepeat(['2', 'a.hil', '--for', '380'])).toMatchObject({ times: 2, seconds: 380, rest: ['a.hil'] })
    for (const wrong of [['x'], ['0'], ['1.5'], [], ['2', '--for', 'long']])
      expect(readRepeat(wrong).times).toBeUndefined()
    expect(positionals(['a.hil', 'b.hil', '-t', 'boots'])).toEqual(['a.hil', 'b.hil'])
    expect(positionals(['-t', 'boots'])).toEqual([])
  })
})

it('one test file more than processors runs at a time, one on a board, and as many as one says', () => {
  expect([1, 2, 4, 64].map((processors) => testsAtOnce({}, processors))).toEqual([2, 3, 5, 8])
  expect(testsAtOnce({ HIL_PLACE: 'rpi4-1', HIL_WORKERS: '3' }, 4)).toBe(1)
  expect(testsAtOnce({ HIL_PLACE: 'qemu-bench-1' }, 4)).toBe(1)
  expect(testsAtOnce({ HIL_PLACE: 'qemu-x86-bios', HIL_WORKERS: '1' }, 4)).toBe(1)
  for (const wrong of ['two', '0', '-1', '1.5']) expect(() => testsAtOnce({ HIL_WORKERS: wrong })).toThrow(LabError)
})
