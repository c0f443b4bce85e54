/**
 * Maintenance windows in local time. Pure: the instant and the rules of the time zone come in.
 *
 * A window is "22:00-05:00", or with days "Mon-Fri 22:00-05:00", "Sat,Sun 00:00-24:00". It belongs to the day on which it
 * opens; one that ends at or before its start goes on into the next day.
 *
 * Where local time jumps: a window whose start is skipped opens at the jump, and keeps its length; one whose end is
 * skipped keeps its length too; of a time that comes twice, the first opens and the second closes. So a window opens on
 * each of its days, whatever the clocks do, and never opens and closes at once.
 */

export interface Window {
  /** 0 Sunday … 6 Saturday, on which it opens. */
  readonly days: readonly number[]
  /** Minutes after midnight: 0 … 1439. */
  readonly start: number
  /** 1 … 1440; at or below `start`: of the next day. */
  readonly end: number
}

/** Minutes by which local time is ahead of UTC at an instant (milliseconds since 1970). */
export type Offset = (instant: number) => number

export interface WindowState {
  readonly open: boolean
  /** When it opened, or the start of the one that opens next; undefined: no windows are set, always open. */
  readonly since: number | undefined
  /** When it closes; undefined as `since`, and when open windows follow each other without end. */
  readonly until: number | undefined
}

const DAYS = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat']
const MINUTE = 60_000
const DAY = 86_400_000
/** How far ahead is looked: a window has at least one day a week. */
const HORIZON_DAYS = 9

/** Reads one window; undefined for anything else. */
export function parseWindow(text: string): Window | undefined {
  const match = /^(?:([A-Za-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)$/.exec(text)
  if (match === null) return undefined
  const days = match[1] === undefined ? [0, 1, 2, 3, 4, 5, 6] : parseDays(match[1].toLowerCase())
  const start = minutes(match[2], match[3])
  const end = minutes(match[4], match[5])
  if (days === undefined || start === undefined || start === 1440 || end === undefined) return undefined
  return { days, start, end: end === 0 ? 1440 : end }
}

function parseDays(text: string): readonly number[] | undefined {
  const found = new Set<number>()
  for (const part of text.split(',')) {
    const [from = '', to = from, more] = part.split('-')
    const [first, last] = [DAYS.indexOf(from), DAYS.indexOf(to)]
    if (first < 0 || last < 0 || more !== undefined) return undefined
    for (let day = first; ; day = (day + 1) % 7) {
      found.add(day)
      if (day === last) break
    }
  }
  return [...found].sort()
}

function minutes(hours = '', rest = ''): number | undefined {
  const total = Number(hours) * 60 + Number(rest)
  return Number(rest) < 60 && total <= 1440 ? total : undefined
}

/** Whether a window is open at an instant, and when that changes. */
export function windowState(windows: readonly Window[], instant: number, offset: Offset): WindowState {
  if (windows.length === 0) return { open: true, since: undefined, until: undefined }
  const spans = spansAround(windows, instant, offset)
  const now = spans.find((span) => span.from <= instant && instant < span.to)
  if (now === undefined) {
    const next = spans.find((span) => span.from > instant)
    return { open: false, since: next?.from, until: next?.to }
  }
  // Spans are merged: one that reaches the end of what was looked at has no end worth naming.
  const endless = now.to - instant > (HORIZON_DAYS - 2) * DAY
  return { open: true, since: now.from, until: endless ? undefined : now.to }
}

interface Span {
  readonly from: number
  readonly to: number
}

/** Every span from two days before to nine days after, in order, overlapping ones joined. */
function spansAround(windows: readonly Window[], instant: number, offset: Offset): readonly Span[] {
  const today = Math.floor((instant + offset(instant) * MINUTE) / DAY) * DAY
  const spans: Span[] = []
  for (let n = -2; n <= HORIZON_DAYS; n++) {
    const midnight = today + n * DAY
    const weekday = new Date(midnight).getUTCDay()
    for (const { days, start, end } of windows) {
      if (!days.includes(weekday)) continue
      const length = ((end <= start ? end + 1440 : end) - start) * MINUTE
      const local = midnight + start * MINUTE
      const opens = instantsOf(local, offset)
      const closes = instantsOf(local + length, offset)
      const from = opens.length > 0 ? Math.min(...opens) : jumpNear(local, offset)
      spans.push({ from, to: opens.length > 0 && closes.length > 0 ? Math.max(...closes) : from + length })
    }
  }
  spans.sort((a, b) => a.from - b.from)
  const joined: Span[] = []
  for (const span of spans) {
    const last = joined.at(-1)
    if (last !== undefined && span.from <= last.to)
      joined[joined.length - 1] = { from: last.from, to: Math.max(last.to, span.to) }
    else joined.push(span)
  }
  return joined
}

/** When a local time (written as if it were UTC) comes: once, twice, or never. */
function instantsOf(local: number, offset: Offset): readonly number[] {
  const readings = [local - offset(local - DAY) * MINUTE, local - offset(local + DAY) * MINUTE]
  return readings.filter((instant) => instant + offset(instant) * MINUTE === local)
}

/** The jump that skips a local time: it lies between its two readings, and is found to the minute by halving. */
function jumpNear(local: number, offset: Offset): number {
  const before = offset(local - DAY)
  let [low, high] = [local - offset(local + DAY) * MINUTE, local - before * MINUTE]
  while (high - low > MINUTE) {
    const middle = low + Math.floor((high - low) / MINUTE / 2) * MINUTE
    if (offset(middle) === before) low = middle
    else high = middle
  }
  return high
}

/** Offsets of a named time zone (IANA), or of the device's own. @throws RangeError for an unknown name */
export function zoneOffset(zone: string | undefined): Offset {
  const format = new Intl.DateTimeFormat('en-US', {
    ...(zone === undefined ? {} : { timeZone: zone }),
    hourCycle: 'h23',
    year: 'numeric',
    month: 'numeric',
    day: 'numeric',
    hour: 'numeric',
    minute: 'numeric',
    second: 'numeric',
  })
  return (instant) => {
    const parts = new Map(format.formatToParts(instant).map(({ type, value }) => [type, Number(value)]))
    const at = (name: Intl.DateTimeFormatPartTypes) => parts.get(name) ?? 0
    const local = Date.UTC(at('year'), at('month') - 1, at('day'), at('hour'), at('minute'), at('second'))
    return Math.round((local - Math.floor(instant / 1000) * 1000) / MINUTE)
  }
}
