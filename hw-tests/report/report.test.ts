import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { readLine } from '../harness/boot-states.ts'
import { LabError } from '../harness/lab-error.ts'
import { countsOf, type Session, spansOf, type TestRecord, timelineText } from '../harness/record.ts'
import { runFolder } from '../harness/report.ts'
import { junitXml } from './junit.ts'
import { mergeRuns, readOutcomes } from './merge.ts'
import { exitCode, type Outcome, type Run, runText, tallyText, verdictOf } from './outcome.ts'
import { writeReports } from './reporter.ts'
import { summaryMarkdown } from './summary.ts'
import { timelineSvg } from './timeline.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-report-'))
afterAll(() => rmSync(folder, { recursive: true }))

const TOLD: readonly [number, string][] = [
  [1200, 'BdsDxe: starting Boot0001 "UEFI <disk> & more – größer"'],
  [2000, 'bistable: boot slot=b boot=try left=2 why=ok'],
  [2500, '[    0.000000] Linux version 6.1.0'],
  [9000, '[   6.0] Kernel panic - not syncing: VFS'],
  [12000, 'bistable: boot slot=a boot=committed left=0 why=ok'],
  [12500, '[    0.000000] Linux version 6.1.0'],
  [20000, 'bistable: fell back to slot=a release=1.2 from=1.5 reason=TRY_TRIES_SPENT'],
]
const session: Session = {
  from: 500,
  to: 21_000,
  initial: 'off',
  cut: true,
  events: TOLD.map(([at, text]) => {
    const event = readLine(text)
    if (event === undefined) throw new Error(text)
    return { at, ...event }
  }),
}
const record: TestRecord = { place: 'qemu', transcript: 'x/y.log', state: 'userspace', sessions: [session] }
const base = { file: 'hw-tests/suites/x.hil.ts', ms: 21_000, errors: [], note: undefined, record }
const outcomes: readonly Outcome[] = [
  { ...base, name: 'works', verdict: 'passed' },
  {
    ...base,
    name: 'says "<no>" & | breaks',
    verdict: 'failed',
    errors: [{ name: 'AssertionError', message: 'slot is b\u001b[31m, a was wanted\u0007\n```\n  1.0 <line>' }],
  },
  { ...base, name: 'no lab', verdict: 'lab', errors: [{ name: 'LabError', message: 'the relay is silent' }] },
  { ...base, name: 'later', verdict: 'skipped', note: 'not here: socat', record: undefined },
]
const run: Run = { id: '20261121-1', place: 'qemu', began: '2026-11-21T11:00:00.000Z', ms: 60_000, stray: [], outcomes }

describe('records', () => {
  it('states follow each other without gaps, from power-on to cut', () => {
    expect(spansOf(session).map(({ state, from, to }) => [state, from, to])).toEqual([
      ['off', 500, 1200],
      ['firmware', 1200, 2000],
      ['bootloader', 2000, 2500],
      ['kernel', 2500, 9000],
      ['panic', 9000, 12000],
      ['bootloader', 12000, 12500],
      ['kernel', 12500, 20000],
      ['userspace', 20000, 21000],
    ])
    expect(spansOf({ ...session, events: [], initial: 'userspace' })).toEqual([
      { state: 'userspace', from: 500, to: 21_000 },
    ])
  })

  it('counts boots and cuts, and tells them on one line', () => {
    expect(countsOf([record, record])).toEqual({ boots: 4, cuts: 2 })
    const foreign = { ...session, cut: false, events: session.events.filter(({ kind }) => kind !== 'boot') }
    expect(countsOf([{ ...record, sessions: [foreign, { ...foreign, events: [] }] }])).toEqual({ boots: 2, cuts: 0 })
    expect(timelineText([session])).toBe(
      '0.5 power on · 1.2 firmware · 2.0 b try · 2.5 kernel · 9.0 PANIC · 12.0 a committed · 12.5 kernel · 20.0 fell back · 21.0 power cut',
    )
  })

  it('a lab error is never a failure of the product', () => {
    expect(verdictOf('passed', [])).toBe('passed')
    expect(verdictOf('failed', [{ name: 'AssertionError' }])).toBe('failed')
    expect(verdictOf('failed', [{ name: 'AssertionError' }, { name: 'LabError' }])).toBe('lab')
    expect(verdictOf('skipped', [])).toBe('skipped')
    expect(tallyText(outcomes)).toBe('1 passed, 1 failed, 1 not run (lab), 1 skipped')
  })

  it('a run ends with 1 when a test failed, and with 3 when only the lab did, also before the first test', () => {
    const [passed, failed, lab] = outcomes as [Outcome, Outcome, Outcome]
    expect([
      exitCode(true, [passed]),
      exitCode(false, outcomes),
      exitCode(false, [passed, lab]),
      exitCode(false, [failed], true),
      exitCode(false, [], true),
      exitCode(false, []),
    ]).toEqual([0, 1, 3, 1, 3, 1])
  })

  it('all processes of a run write into the folder that the first one named', () => {
    const env: NodeJS.ProcessEnv = {}
    const named = runFolder(folder, env)
    expect(named).toMatch(/out\/hil\/\d{8}-\d{6}-\d+$/)
    expect(runFolder('/elsewhere', env)).toBe(named)
    expect(existsSync(named)).toBe(true)
  })
})

describe('reports', () => {
  it('JUnit XML is well formed; failure, error and skip are told apart; the transcript is attached', () => {
    const file = join(folder, 'junit.xml')
    writeFileSync(file, junitXml({ ...run, stray: ['cannot load <x>'] }, 'out/hil/1'))
    const reader = `
import json, sys, xml.etree.ElementTree as E
root = E.parse(sys.argv[1]).getroot()
print(json.dumps({
  'totals': [root.get(k) for k in ('tests', 'failures', 'errors', 'skipped')],
  'cases': [[c.get('name'), [[x.tag, x.get('message')] for x in c if x.tag != 'system-out']] for c in root.iter('testcase')],
  'out': root.find('.//system-out').text.split('\\n')[-1],
  'properties': {p.get('name'): p.get('value') for p in root.iter('property')}}))`
    const told = execFileSync('python3', ['-c', reader, file], { encoding: 'utf8' })
    expect(JSON.parse(told)).toEqual({
      totals: ['4', '1', '2', '1'],
      cases: [
        ['works', []],
        ['says "<no>" & | breaks', [['failure', 'slot is b, a was wanted']]],
        ['no lab', [['error', 'the relay is silent']]],
        ['later', [['skipped', 'not here: socat']]],
        ['the run', [['error', 'errors outside of tests']]],
      ],
      out: '[[ATTACHMENT|out/hil/1/x/y.log]]',
      properties: { place: 'qemu', run: '20261121-1', boots: '6', 'power-cuts': '3' },
    })
  })

  it('the summary shows trouble first and a row of boots for each test; no text breaks the table', () => {
    const text = summaryMarkdown(run)
    expect(text).toContain('1 passed, 1 failed, 1 not run (lab), 1 skipped on qemu; 6 boots, 3 power cuts, 60.0 s (run')
    expect(text.indexOf('### 🔧 not run, the lab is broken: no lab')).toBeLessThan(text.indexOf('| --- |'))
    expect(text).toContain('````\nAssertionError: slot is b')
    const rows = text.split('\n').filter((line) => line.startsWith('| ✅') || line.startsWith('| ❌'))
    for (const row of rows) expect(row.replace(/\\./g, '').match(/\|/g)).toHaveLength(5)
    const long = {
      ...outcomes[1],
      errors: [{ name: 'Error', message: `why ${'x'.repeat(300_000)} last words` }],
    } as Outcome
    const bound = summaryMarkdown({ ...run, outcomes: [long, long, long, long] })
    expect([bound.length < 40_000, bound.includes('why x'), bound.includes('x last words')]).toEqual([true, true, true])
    expect(bound.split('\n').filter((line) => line.startsWith('| ❌'))).toHaveLength(4)
    const much = { ...run, outcomes: Array.from({ length: 4000 }, () => outcomes[1] as Outcome) }
    expect(Buffer.byteLength(summaryMarkdown(much))).toBeLessThan(1024 * 1024)
  })

  it('the page holds the timeline and the transcript; marks lead to the transcript line', async () => {
    const transcript = TOLD.map(([at, text]) => `${(at / 1000).toFixed(3)} ${text}`)
    execFileSync('mkdir', ['-p', join(folder, 'x')])
    writeFileSync(
      join(folder, 'x/y.log'),
      `    0.000 --- power on ---\n${transcript.join('\n')}\n    1.2 <F0123456789 1/1 YQo= 01234567>\n    1.2 <F0123456789 0/1 YQo= 01234567>\n`,
    )
    await writeReports(folder, run)
    const page = readFileSync(join(folder, 'index.html'), 'utf8')
    const marks = [...page.matchAll(/<a href="#(t1-\d+)">/g)].map(([, id]) => id)
    expect(marks).toEqual(TOLD.map((_, at) => `t1-${at + 1}`))
    for (const id of marks) expect(page).toContain(`<span id="${id}">`)
    // A person looks for what went wrong first.
    const verdicts = [...page.matchAll(/<tr><td class="(\w+)">/g)].map(([, verdict]) => verdict)
    expect(verdicts).toEqual(['failed', 'lab', 'passed', 'skipped'])
    // No link leads nowhere.
    for (const [, id] of page.matchAll(/<a href="#([^"]+)">/g)) expect(page).toContain(` id="${id}"`)
    expect(page).not.toContain('F0123456789')
    expect(page).toContain('<b>    0.000 --- power on ---</b>')
    expect(page).toContain('UEFI &lt;disk&gt; &amp; more')
    expect(page).not.toMatch(/<(line|no|disk)>|\x1b|\x07/)
    expect(page).not.toMatch(/(?:src|href)="https?:/)
  })

  it('runs that were parts of one make one report: each test once, where it ran; times, boots and transcripts together', async () => {
    const [one, other, into] = ['one', 'other', 'both'].map((name) => join(folder, name)) as [string, string, string]
    const parts: readonly [string, Run][] = [
      [one, { ...run, id: 'one', outcomes: [outcomes[0], { ...outcomes[3], name: 'cut and 9 ms' }] as Outcome[] }],
      [
        other,
        {
          ...run,
          id: 'other',
          ms: 2000,
          outcomes: [{ ...outcomes[0], name: 'cut and 7 ms' }, ...outcomes.slice(3)] as Outcome[],
        },
      ],
    ]
    for (const [path, part] of parts) {
      execFileSync('mkdir', ['-p', join(path, 'x')])
      writeFileSync(join(path, 'x/y.log'), `transcript of ${part.id}`)
      writeFileSync(join(path, 'run.jsonl'), part.outcomes.map((outcome) => `${JSON.stringify(outcome)}\n`).join(''))
      await writeReports(path, part)
    }
    execFileSync('mkdir', [into])
    const merged = await mergeRuns([one, other], into)
    expect(merged.outcomes.map(({ name, verdict }) => [name, verdict])).toEqual([
      ['works', 'passed'],
      ['cut and 7 ms', 'passed'],
      ['later', 'skipped'],
    ])
    expect(runText(merged)).toBe(
      '2 passed, 0 failed, 0 not run (lab), 1 skipped on qemu; 4 boots, 2 power cuts, 62.0 s in 2 parts',
    )
    expect(await readOutcomes(into)).toEqual(merged.outcomes)
    await writeReports(into, merged)
    const page = readFileSync(join(into, 'index.html'), 'utf8')
    for (const { id } of [{ id: 'one' }, { id: 'other' }]) {
      expect(page).toContain(`transcript of ${id}`)
      expect(readFileSync(join(into, id, 'x/y.log'), 'utf8')).toBe(`transcript of ${id}`)
    }
    await writeReports(other, { ...run, place: 'bench' })
    await expect(mergeRuns([one, other], into)).rejects.toThrow(/these are of qemu, bench/)
    await expect(mergeRuns([folder], into)).rejects.toThrow(LabError)
  })

  it('a crowded timeline leaves words out, and no mark', () => {
    const events = Array.from({ length: 200 }, (_, i) => ({
      at: i,
      kind: i % 2 === 0 ? ('kernel' as const) : ('panic' as const),
      line: `${i}`,
      fields: {},
    }))
    const svg = timelineSvg([{ ...session, from: 0, to: 200_000, events }], (line) => line)
    expect(svg.match(/<a href/g)).toHaveLength(200)
    expect(svg.match(/>kernel<\/text>/g)?.length).toBeLessThan(10)
  })
})
