import { seconds, timelineText } from '../harness/record.ts'
import { bounded, type Outcome, type Run, runText } from './outcome.ts'

const SIGNS = { passed: '✅', failed: '❌', lab: '🔧', skipped: '⏭️' } as const
/** GitHub takes at most 1 MiB per step. */
const MOST_BYTES = 900 * 1024
const MOST_TROUBLE = 8 * 1024

/** The run as Markdown, for `$GITHUB_STEP_SUMMARY`: what went wrong first, then every test with its boots. */
export function summaryMarkdown(run: Run): string {
  const lines = [`## Hardware in the loop: ${run.place}`, '', `${runText(run)} (run ${run.id})`, '']
  for (const text of run.stray) lines.push('outside of tests:', '', ...fenced(text), '')
  for (const outcome of run.outcomes)
    if (outcome.verdict === 'failed' || outcome.verdict === 'lab') lines.push(...trouble(outcome))
  lines.push('| | test | seconds | boots |', '| --- | --- | ---: | --- |')
  for (const { verdict, file, name, ms, note, record } of run.outcomes) {
    const boot = record === undefined ? (note ?? '') : timelineText(record.sessions)
    const cells = [SIGNS[verdict], `${file.split('/').at(-1)}: ${name}`, seconds(ms), boot]
    lines.push(`| ${cells.map(cell).join(' | ')} |`)
  }
  const text = `${lines.join('\n')}\n`
  return Buffer.byteLength(text) <= MOST_BYTES
    ? text
    : `${text.slice(0, MOST_BYTES / 4)}\n\n(cut short; the whole is in index.html)\n`
}

function trouble({ verdict, name, errors }: Outcome): string[] {
  const heading = verdict === 'lab' ? `🔧 not run, the lab is broken: ${name}` : `❌ ${name}`
  return [
    `### ${cell(heading)}`,
    '',
    ...fenced(bounded(errors.map((error) => `${error.name}: ${error.message}`).join('\n\n'), MOST_TROUBLE)),
    '',
  ]
}

/** A fence longer than any run of backticks inside. */
function fenced(text: string): string[] {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length))
  const fence = '`'.repeat(longest + 1)
  return [fence, text.replace(/\x1b\[[0-9;]*m/g, ''), fence]
}

function cell(text: string): string {
  return text.replace(/[\r\n]+/g, ' ').replace(/[\\|<>`*_[\]]/g, (c) => `\\${c}`)
}
