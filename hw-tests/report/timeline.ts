import type { BootState } from '../harness/boot-states.ts'
import { marksOf, type Session, seconds, spansOf } from '../harness/record.ts'
import { escaped } from './outcome.ts'

/** A test's power sessions as a picture: one row from power-on to power cut, coloured by what ran; marks link to the transcript. */

/** Id of the transcript line that an event stands in. Asked once per event, in order. */
export type LineOf = (line: string) => string | undefined

const COLOURS: Readonly<Record<BootState, string>> = {
  off: '#9e9e9e',
  firmware: '#8d6e63',
  bootloader: '#f9a825',
  kernel: '#42a5f5',
  initramfs: '#26a69a',
  userspace: '#66bb6a',
  panic: '#d32f2f',
  'initramfs-failed': '#e64a19',
  emergency: '#ad1457',
}
const NAMES: Readonly<Partial<Record<BootState, string>>> = { off: 'power on, silent' }
const BAD = new Set(['panic', 'oops', 'watchdog', 'initramfs-failed', 'filesystem-error', 'emergency', 'fell-back'])

const WIDTH = 760
const BAR = 16
/** Rows for labels above a bar: a label goes into the first row where it has room. */
const LABEL_ROWS = 3
const LABEL_HEIGHT = 13
const ROW = BAR + LABEL_ROWS * LABEL_HEIGHT + 14
const CHARACTER = 6.1

export function timelineSvg(sessions: readonly Session[], lineOf: LineOf): string {
  const end = Math.max(1, ...sessions.map(({ to }) => to))
  const x = (at: number) => Math.round((Math.min(at, end) / end) * (WIDTH - 2) * 10) / 10 + 1
  const height = Math.max(1, sessions.length) * ROW + 44
  const parts = sessions.map((session, row) => sessionRow(session, row * ROW, x, lineOf))
  const states = [...new Set(sessions.flatMap((session) => spansOf(session).map(({ state }) => state)))]
  return [
    `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">`,
    `<title>${escaped(`${sessions.length} power sessions in ${seconds(end)} s`)}</title>`,
    ...parts,
    axis(end, x, sessions.length * ROW),
    legend(states, sessions.length * ROW + 36),
    '</svg>',
  ].join('\n')
}

function sessionRow(session: Session, top: number, x: (at: number) => number, lineOf: LineOf): string {
  const y = top + LABEL_ROWS * LABEL_HEIGHT + 6
  const parts: string[] = []
  for (const { state, from, to } of spansOf(session)) {
    const what = `${NAMES[state] ?? state}: ${seconds(to - from)} s, from ${seconds(from)} s`
    const width = Math.max(0.6, x(to) - x(from))
    parts.push(
      `<rect x="${x(from)}" y="${y}" width="${width.toFixed(1)}" height="${BAR}" fill="${COLOURS[state]}"><title>${what}</title></rect>`,
    )
  }
  const taken = Array.from({ length: LABEL_ROWS }, () => -1)
  const label = (at: number, text: string, bad: boolean, href: string | undefined, line: string) => {
    const width = text.length * CHARACTER + 4
    const left = Math.min(x(at), WIDTH - width)
    const row = taken.findIndex((until) => until <= left)
    const tick = `<line x1="${x(at)}" x2="${x(at)}" y1="${y - 3}" y2="${y + BAR + 2}" stroke="currentColor" stroke-width="${bad ? 2 : 0.8}"/>`
    const title = `<title>${escaped(`${seconds(at)} s: ${line.trim().slice(0, 200)}`)}</title>`
    let word = ''
    if (row >= 0) {
      taken[row] = left + width
      const style = bad ? ' fill="#d32f2f" font-weight="bold"' : ''
      word = `<text x="${left.toFixed(1)}" y="${y - 5 - row * LABEL_HEIGHT}"${style}>${escaped(text)}</text>`
    }
    const inner = `${title}${tick}${word}`
    parts.push(href === undefined ? `<g>${inner}</g>` : `<a href="#${href}">${inner}</a>`)
  }
  for (const { at, mark, kind, line } of marksOf(session)) label(at, mark, BAD.has(kind), lineOf(line), line)
  if (session.cut) {
    const at = x(session.to)
    parts.push(
      `<g stroke="#d32f2f" stroke-width="2"><title>power cut at ${seconds(session.to)} s</title><line x1="${at - 4}" y1="${y + 3}" x2="${at + 4}" y2="${y + BAR - 3}"/><line x1="${at + 4}" y1="${y + 3}" x2="${at - 4}" y2="${y + BAR - 3}"/></g>`,
    )
  }
  return parts.join('\n')
}

/** Ticks at 1, 2 or 5 times a power of ten, at most ten of them. */
function axis(end: number, x: (at: number) => number, y: number): string {
  const step =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].map((s) => s * 1000).find((s) => end / s <= 10) ?? end
  const parts = [
    `<line x1="1" x2="${WIDTH - 1}" y1="${y + 2}" y2="${y + 2}" stroke="currentColor" stroke-opacity=".4"/>`,
  ]
  for (let at = 0; at <= end; at += step) {
    const anchor = at === 0 ? 'start' : x(at) > WIDTH - 30 ? 'end' : 'middle'
    parts.push(`<text x="${x(at)}" y="${y + 15}" text-anchor="${anchor}" fill-opacity=".7">${at / 1000} s</text>`)
  }
  return parts.join('\n')
}

function legend(states: readonly BootState[], y: number): string {
  let at = 1
  return states
    .map((state) => {
      const name = NAMES[state] ?? state
      const left = at
      at += 20 + name.length * CHARACTER
      return `<rect x="${left}" y="${y - 9}" width="10" height="10" fill="${COLOURS[state]}"/><text x="${left + 14}" y="${y}">${name}</text>`
    })
    .join('')
}
