import type { Sha256 } from '../../base/bytes.ts'
import { SEGMENT_PIECES } from '../../broker/topics.ts'
import { segmentOf, WINDOW_SEGMENTS } from '../../device/doors/window.ts'
import { Schedule } from '../../publisher/mqtt/schedule.ts'

/**
 * A publisher's schedule, a broker and many devices on a clock of their own. Devices do what the door does: they listen
 * to the segments of their window, ask once for each segment on the way, ask again after a pause without a useful piece,
 * and answer marks. Messages keep their order on the way to each device and to the publisher, and take as long as they
 * are told. The same plan gives the same run.
 */

export interface SimDevice {
  /** When it begins, and how many milliseconds its reader needs for a piece. */
  readonly joins: number
  readonly pieceMs: number
  /** Milliseconds on the way to it and from it. */
  readonly latency: number
  /** Does nothing at all in these times. */
  readonly away?: readonly (readonly [from: number, to: number])[]
  /** The piece that it begins with. */
  readonly from?: number
  /** One of so many pieces does not reach it. */
  readonly loses?: number
}

export interface SimResult {
  /** Times that each piece was sent, on average. */
  readonly sentEach: number
  /** When each device had everything. */
  readonly done: readonly number[]
}

const BUNDLE = 'ab'.repeat(32) as Sha256
const ASK_AGAIN_MS = 5000

interface State {
  readonly plan: SimDevice
  /** Its reader will go on by itself. */
  reads: boolean
  /** Next piece of the reader; when it has read the one before. */
  reader: number
  readAt: number
  readonly got: Set<number>
  missing: Set<number>
  heardTo: number
  asked: number
  useful: number
  pause: number
  mark: number
  /** Nothing overtakes. */
  arrives: number
  done: number
}

export function simulate(
  devices: readonly SimDevice[],
  pieces: number,
  { gatherMs = 10_000, sendMs = 1 } = {},
): SimResult {
  const events = new Heap()
  const schedule = new Schedule({ gatherMs, present: () => devices.length })
  let free = 0
  let planned = Number.POSITIVE_INFINITY
  let lost = 0
  const all: State[] = devices.map((plan) => ({
    ...{ plan, reads: false, reader: plan.from ?? 0, readAt: 0, got: new Set<number>(), missing: new Set<number>() },
    ...{ heardTo: -1, asked: 0, useful: 0, pause: ASK_AGAIN_MS, mark: 0, arrives: 0, done: 0 },
  }))
  const awake = ({ plan }: State, at: number) => plan.away?.find(([from, to]) => at >= from && at < to)?.[1] ?? at

  const pump = (now: number): void => {
    if (now < free) {
      plan(free)
      return
    }
    const next = schedule.next(now)
    if ('waitMs' in next) {
      plan(now + next.waitMs)
      return
    }
    free = now + sendMs
    for (const state of all) {
      // The broker gives it to whoever listens to the segment at this moment.
      if (!listens(state, next.index)) continue
      if (state.plan.loses !== undefined && ++lost % state.plan.loses === 0) continue
      toDevice(state, now, (at) => receive(state, next.index, at))
    }
    plan(free)
  }
  const plan = (at: number): void => {
    if (planned <= at) return
    planned = at
    events.push(at, (now) => {
      if (planned !== now) return
      planned = Number.POSITIVE_INFINITY
      pump(now)
    })
  }
  const toDevice = (state: State, now: number, then: (at: number) => void): void => {
    state.arrives = Math.max(state.arrives, awake(state, now + state.plan.latency))
    events.push(state.arrives, then)
  }
  const listens = (state: State, index: number): boolean =>
    state.done === 0 &&
    segmentOf(index) <= state.heardTo &&
    segmentOf(index) >= segmentOf(state.reader) &&
    state.asked > 0

  const ask = (state: State, now: number, again: boolean): void => {
    state.asked = now
    const name = `device-${all.indexOf(state)}`
    const wanted = [...state.missing]
    const { mark } = state
    events.push(now + state.plan.latency, (at) => {
      if (schedule.ask(name, BUNDLE, wanted, { again, mark }, at)) {
        const { sent } = schedule
        toDevice(state, at, (then) => {
          if (sent <= state.mark) return
          state.mark = sent
          if (state.missing.size > 0) ask(state, then, false)
        })
      }
      plan(at)
    })
  }
  const receive = (state: State, index: number, now: number): void => {
    if (!state.missing.delete(index)) return
    state.got.add(index)
    state.useful = now
    state.pause = ASK_AGAIN_MS
    read(state, now)
  }
  /** Goes on with what is there; the window moves with the reader. */
  const read = (state: State, now: number): void => {
    while (state.got.has(state.reader) && state.readAt <= now) {
      state.got.delete(state.reader++)
      state.readAt = Math.max(state.readAt, now) + state.plan.pieceMs
    }
    if (state.reader >= pieces) {
      if (state.done === 0) ask({ ...state, missing: new Set() }, now, false)
      state.done = now
      return
    }
    if (move(state)) ask(state, now, false)
    if (!state.got.has(state.reader) || state.reads) return
    state.reads = true
    events.push(awake(state, state.readAt), (at) => {
      state.reads = false
      read(state, at)
    })
  }
  const move = (state: State): boolean => {
    const to = segmentOf(state.reader) + WINDOW_SEGMENTS - 1
    if (to <= state.heardTo) return false
    const from = Math.max(state.reader, (state.heardTo + 1) * SEGMENT_PIECES)
    for (let index = from; index < Math.min(pieces, (to + 1) * SEGMENT_PIECES); index++) state.missing.add(index)
    state.heardTo = to
    return true
  }
  const watch = (state: State, now: number): void => {
    if (state.done > 0) return
    if (
      awake(state, now) === now &&
      !state.got.has(state.reader) &&
      now - Math.max(state.asked, state.useful) >= state.pause
    ) {
      ask(state, now, true)
      state.pause = Math.min(state.pause * 2, ASK_AGAIN_MS * 16)
    }
    events.push(now + 500, (at) => watch(state, at))
  }
  all.forEach((state, i) => {
    events.push(state.plan.joins, (now) => {
      events.push(now + state.plan.latency, (at) => schedule.expect(`device-${i}`, BUNDLE, at))
      events.push(now + 2 * state.plan.latency, (at) => {
        read(state, at)
        watch(state, at)
      })
    })
  })
  events.run(24 * 3600_000)
  return { sentEach: schedule.sent / pieces, done: all.map(({ done }) => done) }
}

/** What happens next, by time; what was planned first among the same. */
class Heap {
  readonly #items: { at: number; n: number; what: (at: number) => void }[] = []
  #n = 0

  push(at: number, what: (at: number) => void): void {
    const items = this.#items
    items.push({ at, n: this.#n++, what })
    for (let i = items.length - 1; i > 0; ) {
      const up = (i - 1) >> 1
      if (!this.#before(i, up)) break
      this.#swap(i, up)
      i = up
    }
  }

  run(until: number): void {
    for (;;) {
      const [first] = this.#items
      if (first === undefined || first.at > until) return
      const last = this.#items.pop()
      if (last !== undefined && this.#items.length > 0) {
        this.#items[0] = last
        this.#sink()
      }
      first.what(first.at)
    }
  }

  #sink(): void {
    for (let i = 0; ; ) {
      const [left, right] = [2 * i + 1, 2 * i + 2]
      let least = i
      if (left < this.#items.length && this.#before(left, least)) least = left
      if (right < this.#items.length && this.#before(right, least)) least = right
      if (least === i) return
      this.#swap(i, least)
      i = least
    }
  }

  #before(a: number, b: number): boolean {
    const [one, two] = [this.#items[a], this.#items[b]]
    if (one === undefined || two === undefined) return false
    return one.at < two.at || (one.at === two.at && one.n < two.n)
  }

  #swap(a: number, b: number): void {
    const [one, two] = [this.#items[a], this.#items[b]]
    if (one === undefined || two === undefined) return
    this.#items[a] = two
    this.#items[b] = one
  }
}
