import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { isDone, labErrorFile } from '../harness/report.ts'
import { fitting, goOn, readLines, readPlan, type SeriesOptions } from './series.ts'

const scratch = mkdtempSync(join(tmpdir(), 'bistable-series-'))
afterAll(() => rmSync(scratch, { recursive: true }))

/** Two tests a file; writes what the reporter of a real run writes, under a clock of its own. */
class FakeTests {
  clock = 1_000_000
  readonly started: string[] = []
  /** Files that take so many milliseconds; the others 10 s. */
  takes: Readonly<Record<string, number>> = {}
  /** The program is killed in the second test of this file, once. */
  killedIn: string | undefined
  /** The test that is running then ends with the emulator: is that said, too? */
  saysLab = false
  fails: (test: string, seed: number) => boolean = () => false

  run: SeriesOptions['run'] = async (files, folder, seed) => {
    let failed = 0
    for (const file of files) {
      const began = this.clock
      for (const name of ['first', 'second']) {
        const done = isDone(folder, file, name)
        const say = (verdict: string, ms: number) => {
          const outcome = { file, name, verdict, ms, at: new Date(this.clock).toISOString(), errors: [] }
          appendFileSync(join(folder, 'run.jsonl'), `${JSON.stringify(outcome)}\n`)
        }
        if (done) {
          say('skipped', 0)
          continue
        }
        this.started.push(`${seed} ${file} ${name}`)
        const ms = (this.takes[file] ?? 10_000) / 2
        this.clock += ms
        if (file === this.killedIn && name === 'second') {
          this.killedIn = undefined
          if (this.saysLab) say('lab', ms)
          appendFileSync(join(folder, 'run.jsonl'), '{"file":"half a li')
          return undefined
        }
        const bad = this.fails(`${file} ${name}`, seed)
        if (bad) failed++
        say(bad ? 'failed' : 'passed', ms)
      }
      const ended = { file, at: new Date(this.clock).toISOString(), ms: this.clock - began, errors: 0 }
      appendFileSync(join(folder, 'files.jsonl'), `${JSON.stringify(ended)}\n`)
    }
    return failed === 0 ? 0 : 1
  }
}

let made = 0
function series(tests: FakeTests, more: Partial<SeriesOptions> = {}): SeriesOptions {
  return {
    folder: join(scratch, `${++made}`),
    plan: { times: 3, seed: 7, args: [], short: true, place: 'qemu' },
    files: ['a.hil.ts', 'b.hil.ts', 'c.hil.ts'],
    workers: 1,
    now: () => tests.clock,
    run: tests.run,
    say: () => {},
    of: 'abc1234',
    ...more,
  }
}

describe('a series of runs', () => {
  it('keeps a line for each run, with its seed, its tests and its wall time', async () => {
    const tests = new FakeTests()
    tests.fails = (test, seed) => test === 'b.hil.ts first' && seed === 8
    const options = series(tests)
    const lines = await goOn(options)
    expect(lines).toMatchObject([
      { run: 1, seed: 7, of: 'abc1234', passed: 6, failed: 0, lab: 0, stray: 0, seconds: 30, parts: 1 },
      { run: 2, seed: 8, passed: 5, failed: 1, tests: { 'b.hil.ts: first': 'failed', 'b.hil.ts: second': 'passed' } },
      { run: 3, seed: 9, passed: 6 },
    ])
    const kept = readFileSync(join(options.folder, 'runs.jsonl'), 'utf8').trim().split('\n')
    expect(kept.map((line) => JSON.parse(line))).toEqual(lines)
    // Another call has nothing left to do.
    expect(await goOn(options)).toEqual(lines)
    expect(tests.started).toHaveLength(18)
    expect(await readPlan(options.folder)).toEqual(options.plan)
  })

  it.each([false, true])(
    'that was cut goes on with the test it was cut in, and the same seed (lab: %s)',
    async (saysLab) => {
      const tests = new FakeTests()
      const options = series(tests, { plan: { times: 1, seed: 7, args: [], short: true, place: 'qemu' } })
      Object.assign(tests, { killedIn: 'b.hil.ts', saysLab })
      await expect(goOn(options)).rejects.toThrow(/killed/)
      expect(await readLines(options.folder)).toEqual([])
      const lines = await goOn(options)
      expect(tests.started).toEqual([
        ...['7 a.hil.ts first', '7 a.hil.ts second', '7 b.hil.ts first', '7 b.hil.ts second'],
        ...['7 b.hil.ts second', '7 c.hil.ts first', '7 c.hil.ts second'],
      ])
      // What was cut counts neither as a test nor as time.
      expect(lines).toMatchObject([{ passed: 6, failed: 0, lab: 0, skipped: 0, stray: 0, seconds: 30, parts: 2 }])
    },
  )

  it('that was cut keeps what had failed until then', async () => {
    const tests = new FakeTests()
    const options = series(tests, { plan: { times: 1, seed: 7, args: [], short: true, place: 'qemu' } })
    Object.assign(tests, { killedIn: 'b.hil.ts', fails: (test: string) => test === 'b.hil.ts first' })
    await expect(goOn(options)).rejects.toThrow(/killed/)
    expect(await goOn(options)).toMatchObject([{ passed: 5, failed: 1, stray: 0, parts: 2 }])
  })

  it('is made longer by a larger number', async () => {
    const tests = new FakeTests()
    const options = series(tests, { plan: { times: 1, seed: 7, args: [], short: true, place: 'qemu' } })
    await goOn(options)
    const lines = await goOn({ ...options, plan: { ...options.plan, times: 2 } })
    expect(lines.map(({ seed }) => seed)).toEqual([7, 8])
  })

  it('drops a line that was being written when the power went', async () => {
    const tests = new FakeTests()
    const options = series(tests, { plan: { times: 1, seed: 7, args: [], short: true, place: 'qemu' } })
    const [line] = await goOn(options)
    writeFileSync(join(options.folder, 'runs.jsonl'), `${JSON.stringify(line)}\n{"run":2,"se`)
    expect(await readLines(options.folder)).toEqual([line])
    await goOn({ ...options, plan: { ...options.plan, times: 2 } })
    expect((await readLines(options.folder)).map(({ run }) => run)).toEqual([1, 2])
  })

  it('starts only what will end in its time, by how long it took before, and one file at least', async () => {
    const tests = new FakeTests()
    tests.takes = { 'a.hil.ts': 50_000, 'b.hil.ts': 30_000 }
    const options = series(tests)
    const within = (seconds: number) => goOn({ ...options, until: tests.clock + seconds * 1000 })
    // Nothing is known yet; the second run begins with what is left of the time.
    expect(await within(100)).toHaveLength(1)
    expect(tests.started.slice(6)).toEqual(['8 c.hil.ts first', '8 c.hil.ts second'])
    expect(await within(20)).toHaveLength(1)
    expect(tests.started.slice(8)).toEqual(['8 b.hil.ts first', '8 b.hil.ts second'])
    expect(await within(200)).toHaveLength(3)
    expect(await readLines(options.folder)).toMatchObject([{ parts: 1 }, { parts: 3, seconds: 90 }, { parts: 1 }])
  })

  it('ends where the lab is broken, or a file says nothing', async () => {
    const tests = new FakeTests()
    const broken = series(tests, {
      run: async (_, folder) => {
        writeFileSync(labErrorFile(folder), 'somebody has it\n')
        return 1
      },
    })
    await expect(goOn(broken)).rejects.toThrow('somebody has it')
    const silent = series(tests, { run: async () => 1 })
    await expect(goOn(silent)).rejects.toThrow('ran none of a.hil.ts, b.hil.ts, c.hil.ts')
    // An exit code that no test explains.
    const stray = series(tests, { run: async (...what) => ((await tests.run(...what)) ?? 0) + 1 })
    expect((await goOn(stray)).map((line) => line.stray)).toEqual([1, 1, 1])
  })

  it('of something else in its folder is refused', async () => {
    const folder = join(scratch, 'other')
    expect(await readPlan(folder)).toBeUndefined()
    await goOn(series(new FakeTests(), { folder }))
    writeFileSync(join(folder, 'repeat.json'), 'x')
    await expect(readPlan(folder)).rejects.toThrow('is no plan of runs')
  })
})

it('files fit side by side, the longest first', () => {
  const known = new Map(Object.entries({ a: 60, b: 40, c: 30, d: 20 }))
  const files = ['a', 'b', 'c', 'd', 'new']
  expect(fitting(files, known, 2, 75, false)).toEqual(['a', 'b', 'c', 'new'])
  expect(fitting(files, known, 2, 50, false)).toEqual(['b', 'c', 'd', 'new'])
  expect(fitting(['a', 'b'], known, 2, 30, false)).toEqual([])
  expect(fitting(['a', 'b'], known, 2, 30, true)).toEqual(['b'])
  expect(fitting(files, known, 2, 0, false)).toEqual([])
})
