import { seconds } from '../harness/record.ts'
import { countsText, escaped, type Outcome, type Run, tallyText } from './outcome.ts'
import { type LineOf, timelineSvg } from './timeline.ts'

/** One page per run: each test with its timeline as a picture, and its transcript beside it. Needs nothing from a network. */

const MOST_LINES = 4000

const STYLE = `
:root { color-scheme: light dark; --line: #8886; --bad: #c62828; --lab: #b26a00; --good: #2e7d32; --dim: #777; --said: light-dark(#0b57d0, #8ab4f8); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 0; }
table { border-collapse: collapse; margin: 1rem 0; } td { padding: .1rem .8rem .1rem 0; vertical-align: top; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.passed { color: var(--good); } .failed { color: var(--bad); } .lab { color: var(--lab); } .skipped { color: var(--dim); }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.both { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); gap: 1.2rem; margin-top: .6rem; }
@media (max-width: 1000px) { .both { grid-template-columns: minmax(0, 1fr); } }
pre { font: 12px/1.4 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.error { border-left: 3px solid var(--bad); padding-left: .7rem; margin-bottom: .8rem; max-height: 22rem; overflow: auto; }
pre.transcript { max-height: 30rem; overflow: auto; border: 1px solid var(--line); padding: .5rem; }
pre.transcript b { font-weight: 400; color: var(--said); }
pre.transcript span:target { background: #ffd54f; color: #000; }
svg { width: 100%; height: auto; } svg a:hover rect, svg a:focus rect { stroke: currentColor; }
.dim { color: var(--dim); }`

/** `transcripts`: the text of each test's transcript by its path; a missing one is said to be missing. */
export function htmlPage(run: Run, transcripts: ReadonlyMap<string, string>): string {
  // What went wrong comes first; the rest in the order of its ends.
  const rank = ({ verdict }: Outcome) => (verdict === 'failed' ? 0 : verdict === 'lab' ? 1 : 2)
  const outcomes = run.outcomes.toSorted((a, b) => rank(a) - rank(b))
  // One that never ran, or keeps no record, has nothing to show but its row.
  const shown = (outcome: Outcome) => outcome.record !== undefined || outcome.errors.length > 0
  const title = (outcome: Outcome, index: number) =>
    shown(outcome) ? `<a href="#t${index}">${escaped(outcome.name)}</a>` : escaped(outcome.name)
  const rows = outcomes.map((outcome, index) => {
    const { verdict, file, ms, note } = outcome
    return `<tr><td class="${verdict}">${verdict}</td><td class="n">${seconds(ms)} s</td><td>${title(outcome, index)} <span class="dim">${escaped([file.split('/').at(-1), note].filter((text) => text !== undefined).join(': '))}</span></td></tr>`
  })
  return [
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<title>${escaped(run.place)}: ${escaped(tallyText(run.outcomes))}</title><style>${STYLE}</style>`,
    `<h1>${escaped(run.place)}: ${escaped(tallyText(run.outcomes))}</h1>`,
    `<div class="dim">run ${escaped(run.id)}, began ${escaped(run.began.slice(0, 19).replace('T', ' '))} UTC, ${seconds(run.ms)} s${run.parts === undefined ? '' : ` in ${run.parts.length} parts`}; ${countsText(run.outcomes)}</div>`,
    ...run.stray.map((text) => `<pre class="error">${escaped(text)}</pre>`),
    `<table>${rows.join('\n')}</table>`,
    ...outcomes.map((outcome, index) => (shown(outcome) ? section(outcome, index, transcripts) : '')),
    '</html>\n',
  ].join('\n')
}

function section(outcome: Outcome, index: number, transcripts: ReadonlyMap<string, string>): string {
  const { verdict, file, name, ms, errors, note, record } = outcome
  const word = verdict === 'lab' ? 'not run: the lab is broken' : verdict
  const head = `<section id="t${index}"><h2><span class="${verdict}">${word}</span> ${escaped(name)}</h2><div class="dim">${escaped(file)}, ${seconds(ms)} s${note === undefined ? '' : `, ${escaped(note)}`}</div>`
  const trouble = errors
    .map((error) => `<pre class="error">${escaped(`${error.name}: ${error.message}`)}</pre>`)
    .join('\n')
  if (record === undefined) return `${head}${trouble}</section>`
  const text = transcripts.get(record.transcript)
  const lines = withoutFrames((text ?? '(no transcript)').replace(/\n$/, '').split('\n'))
  const kept = lines.slice(-MOST_LINES)
  const picture = timelineSvg(record.sessions, finder(kept, index))
  const left = lines.length - kept.length
  const beside = [
    ...(left > 0 ? [`<span class="dim">(${left} lines before are in the file)</span>`] : []),
    ...kept.map((line, at) => `<span id="t${index}-${at}">${shownLine(line)}</span>`),
  ].join('\n')
  return [
    head,
    '<div class="both">',
    `<div>${trouble}${picture}<p class="dim">at the end: ${record.state}; <a href="${encodeURI(record.transcript)}">transcript</a></p></div>`,
    `<pre class="transcript" tabindex="0">${beside}</pre>`,
    '</div></section>',
  ].join('\n')
}

/** What the harness did stands out from what the device said. */
function shownLine(line: string): string {
  const text = escaped(line)
  return /^ *[\d.]+ --- /.test(line) ? `<b>${text}</b>` : text
}

/** Answers of commands come as base64 in frames; what they said stands behind them in a line of the harness's. The file has them all. */
function withoutFrames(lines: readonly string[]): readonly string[] {
  return lines.filter((line) => !/^ *[\d.]+ <F[0-9A-F]{10} \d+\/\d+ /.test(line))
}

/** Events come in the transcript's order, so each is looked for behind the one before. */
function finder(lines: readonly string[], index: number): LineOf {
  let from = 0
  return (line) => {
    const found = lines.findIndex((text, at) => at >= from && text.endsWith(line))
    if (found < 0) return undefined
    from = found + 1
    return `t${index}-${found}`
  }
}
