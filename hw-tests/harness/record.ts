import type { BootEvent, BootState } from './boot-states.ts'
import { nextState } from './boot-states.ts'

/** What a test leaves for the reports: power sessions and what was seen in each. Plain data: it crosses a process. */

/** Milliseconds since the test began, everywhere in these records. */
export interface RecordedEvent {
  readonly at: number
  readonly kind: BootEvent['kind']
  readonly line: string
  readonly fields: Readonly<Record<string, string>>
}

/** From power-on (or the restart of a saved state) to the power cut. */
export interface Session {
  readonly from: number
  readonly to: number
  /** What it was when this record begins: `off` at power-on, `userspace` of a device that was up already. */
  readonly initial: BootState
  /** Whether the test cut the power; otherwise the session just ended with the test. */
  readonly cut: boolean
  readonly events: readonly RecordedEvent[]
}

export interface TestRecord {
  readonly place: string
  /** Path of the transcript, relative to the run's folder. */
  readonly transcript: string
  readonly state: BootState
  readonly sessions: readonly Session[]
}

/** Leaves a record with a test's metadata, where the reporter finds it. */
export function leaveRecord(meta: object, record: TestRecord): void {
  Object.assign(meta, { hil: record })
}

export function recordOf(meta: object): TestRecord | undefined {
  return (meta as { readonly hil?: TestRecord }).hil
}

export interface Span {
  readonly state: BootState
  readonly from: number
  readonly to: number
}

/** Which state a session was in, when. Pure; spans follow each other without gaps. */
export function spansOf(session: Session): readonly Span[] {
  const spans: Span[] = []
  let state = session.initial
  let from = session.from
  for (const event of session.events) {
    const next = nextState(state, event)
    if (next === state) continue
    if (event.at > from) spans.push({ state, from, to: event.at })
    state = next
    from = event.at
  }
  if (session.to > from || spans.length === 0) spans.push({ state, from, to: session.to })
  return spans
}

/** Boots seen and power cuts made. Of a board whose boot loader says nothing of ours, the kernels that started. Pure. */
export function countsOf(records: readonly TestRecord[]): { readonly boots: number; readonly cuts: number } {
  const sessions = records.flatMap((record) => record.sessions)
  const seen = ({ events }: Session, wanted: BootEvent['kind']) => events.filter(({ kind }) => kind === wanted).length
  return {
    boots: sessions.reduce((sum, session) => sum + (seen(session, 'boot') || seen(session, 'kernel')), 0),
    cuts: sessions.filter(({ cut }) => cut).length,
  }
}

const MARKS: Readonly<Partial<Record<BootEvent['kind'], string>>> = {
  firmware: 'firmware',
  kernel: 'kernel',
  trying: 'on trial',
  running: 'up',
  committed: 'committed',
  'fell-back': 'fell back',
  armed: 'armed',
  refused: 'refused',
  panic: 'PANIC',
  oops: 'oops',
  watchdog: 'watchdog',
  'initramfs-failed': 'initramfs failed',
  'filesystem-error': 'file system error',
  emergency: 'emergency shell',
}

/** A word or two for a timeline: "b try", "kernel", "committed"; undefined for what a timeline leaves out. */
function markOf({ kind, fields }: Pick<RecordedEvent, 'kind' | 'fields'>): string | undefined {
  if (kind === 'boot') return `${fields['slot'] ?? '?'} ${fields['boot'] ?? '?'}`
  return MARKS[kind]
}

/** The marks of a session's timeline; of equal ones that follow each other the first. */
export function marksOf(session: Session): readonly (RecordedEvent & { readonly mark: string })[] {
  const marks: (RecordedEvent & { readonly mark: string })[] = []
  for (const event of session.events) {
    const mark = markOf(event)
    if (mark !== undefined && mark !== marks.at(-1)?.mark) marks.push({ ...event, mark })
  }
  return marks
}

/** A test's boots on one line: "power on · 3.2 a committed · 4.0 kernel · 12.9 up | cut · ...". */
export function timelineText(sessions: readonly Session[]): string {
  return sessions
    .map((session) => {
      const parts = [`${seconds(session.from)} ${session.initial === 'off' ? 'power on' : 'goes on'}`]
      for (const { at, mark } of marksOf(session)) parts.push(`${seconds(at)} ${mark}`)
      if (session.cut) parts.push(`${seconds(session.to)} power cut`)
      return parts.join(' · ')
    })
    .join(' | ')
}

/** "12.9" */
export function seconds(ms: number): string {
  return (ms / 1000).toFixed(1)
}
