import { join } from 'node:path'
import { countsOf, timelineText } from '../harness/record.ts'
import { escaped, type Outcome, type Run, tally } from './outcome.ts'

/**
 * JUnit XML as Jenkins and GitLab read it: a failed assertion is a `failure`, a broken lab an `error`. The transcript is
 * named by the attachment line of both (`[[ATTACHMENT|path]]` in system-out): `folder` is the run's, as seen from the project.
 */
export function junitXml(run: Run, folder = ''): string {
  const files = [...new Set(run.outcomes.map(({ file }) => file))]
  const { failed, lab, skipped } = tally(run.outcomes)
  const totals = `tests="${run.outcomes.length}" failures="${failed}" errors="${lab + run.stray.length}" skipped="${skipped}"`
  const lines = [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuites name="bistable hil" ${totals} time="${time(run.ms)}">`,
    ...files.flatMap((file) => suite(run, file, folder)),
  ]
  if (run.stray.length > 0) {
    lines.push(`  <testsuite name="outside of tests" tests="1" failures="0" errors="1" skipped="0" time="0">`)
    lines.push(`    <testcase classname="outside of tests" name="the run" time="0">`)
    lines.push(`      <error type="Error" message="errors outside of tests">${escaped(run.stray.join('\n\n'))}</error>`)
    lines.push('    </testcase>', '  </testsuite>')
  }
  return `${[...lines, '</testsuites>'].join('\n')}\n`
}

function suite(run: Run, file: string, folder: string): string[] {
  const outcomes = run.outcomes.filter((outcome) => outcome.file === file)
  const { failed, lab, skipped } = tally(outcomes)
  const { boots, cuts } = countsOf(outcomes.flatMap(({ record }) => record ?? []))
  const totals = `tests="${outcomes.length}" failures="${failed}" errors="${lab}" skipped="${skipped}"`
  const ms = outcomes.reduce((sum, outcome) => sum + outcome.ms, 0)
  return [
    `  <testsuite name="${escaped(file)}" timestamp="${run.began.slice(0, 19)}" ${totals} time="${time(ms)}">`,
    '    <properties>',
    ...[
      ['place', run.place],
      ['run', run.id],
      ['boots', String(boots)],
      ['power-cuts', String(cuts)],
    ].map(([name, value]) => `      <property name="${name}" value="${escaped(value ?? '')}"/>`),
    '    </properties>',
    ...outcomes.flatMap((outcome) => testCase(outcome, folder)),
    '  </testsuite>',
  ]
}

function testCase({ file, name, verdict, ms, errors, note, record }: Outcome, folder: string): string[] {
  const lines = [`    <testcase classname="${escaped(file)}" name="${escaped(name)}" time="${time(ms)}">`]
  if (verdict === 'skipped') lines.push(`      <skipped message="${escaped(note ?? '')}"/>`)
  const tag = verdict === 'lab' ? 'error' : 'failure'
  if (verdict === 'failed' || verdict === 'lab') {
    const [first] = errors
    const message = escaped((first?.message ?? '').split('\n')[0] ?? '')
    const whole = errors.map((error) => `${error.name}: ${error.message}`).join('\n\n')
    lines.push(
      `      <${tag} type="${escaped(first?.name ?? 'Error')}" message="${message}">${escaped(whole)}</${tag}>`,
    )
  }
  if (record !== undefined)
    lines.push(
      `      <system-out>${escaped(timelineText(record.sessions))}`,
      `state at the end: ${record.state}`,
      `[[ATTACHMENT|${escaped(join(folder, record.transcript))}]]</system-out>`,
    )
  return [...lines, '    </testcase>']
}

function time(ms: number): string {
  return (ms / 1000).toFixed(3)
}
