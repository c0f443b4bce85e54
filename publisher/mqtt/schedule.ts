import type { Sha256 } from '../../base/bytes.ts'

/**
 * Which piece is sent next. Pure but for what it remembers; the time comes in. What many devices wait for is sent once:
 * a piece goes out when every device that is at work on its bundle has come so far, or after a time that the fast wait
 * for the slow, who catch up meanwhile. One that does not is left to itself for a while. Devices take turns, so that no
 * number of requests gets one device more than its share.
 */

export interface Job {
  readonly bundle: Sha256
  readonly index: number
  /** Devices that wait for it. */
  readonly devices: readonly string[]
}

export interface ScheduleOptions {
  /** How long a piece waits for devices that have not come so far. Milliseconds. */
  readonly gatherMs: number
  /** Devices that are there and may want the same; while there are more than ask, the first of them wait for the others. */
  readonly present?: () => number
}

/** A device that has not asked for so long is not waited for, and what it asked for is forgotten after `FORGET_MS`. */
const ACTIVE_MS = 10_000
const FORGET_MS = 60_000
/** How often in a row a device may keep the others waiting in vain, and for how long it is not waited for afterwards. */
const LATE_TIMES = 4
const LEFT_MS = 30_000
/** A piece that went out so lately may still be on its way to who asks for it now. */
const ECHO_MS = 200
/** The head of a bundle: small, and the first that each device reads. */
const HEAD_PIECES = 8
/** A repeated request for a piece sent so lately crossed it. */
const CROSSED_MS = 3000
/** While more than one device in fifty has not come so far, it is not they who are slow: the others wait so many times longer. */
const FEW = 50
const LONGER = 3
/** How long the first devices at a bundle wait for the next one that comes, and for all of them. */
const NEXT_MS = 1000
const OPENING_MS = 10_000

interface Asker {
  bundle: Sha256
  at: number
  /** Highest piece of its last request: below that it has asked for what it lacks. */
  top: number
  readonly wants: Set<number>
  late: number
  lateAt: number
  /** Until then the others do not wait for it. */
  leftUntil: number
  /** When pieces that it had asked for were sent; only of those still in its requests. */
  served: Map<number, number>
}

/** The highest piece up to which all devices have asked for what they lack, and all but a few. */
interface Reach {
  readonly all: number
  readonly most: number
  readonly opening: boolean
}

interface Waiting {
  /** First asked for. */
  readonly since: number
  readonly by: Set<string>
}

interface BundleState {
  /** Since when anybody is at work on it, and when the last one came. */
  readonly since: number
  joinedAt: number
  readonly waiting: Map<number, Waiting>
  readonly askers: Set<string>
  readonly sentAt: Map<number, number>
}

export class Schedule {
  readonly #options: ScheduleOptions
  /** In the order of their turns. */
  readonly #askers = new Map<string, Asker>()
  readonly #bundles = new Map<Sha256, BundleState>()

  constructor(options: ScheduleOptions) {
    this.#options = options
  }

  /** Devices that wait for something. */
  get waiting(): number {
    let n = 0
    for (const { wants } of this.#askers.values()) if (wants.size > 0) n++
    return n
  }

  /**
   * A device says what it waits for now; what it said before is void.
   * @param pieces ascending; the caller bounds them. Empty: it waits for nothing any more
   * @param again it waited long enough to believe that they were lost
   */
  ask(device: string, bundle: Sha256, pieces: readonly number[], again: boolean, now: number): void {
    const before = this.#askers.get(device)
    if (before !== undefined) this.#withdraw(device, before)
    const top = pieces.at(-1)
    if (top === undefined) {
      this.#askers.delete(device)
      return
    }
    const state = this.#bundles.get(bundle) ?? {
      since: now,
      joinedAt: now,
      waiting: new Map(),
      askers: new Set(),
      sentAt: new Map(),
    }
    this.#bundles.set(bundle, state)
    const served = new Map<number, number>()
    const wants = new Set<number>()
    for (const index of pieces) {
      const sent = before?.bundle === bundle ? before.served.get(index) : undefined
      if (sent !== undefined && (!again || now - sent < CROSSED_MS)) served.set(index, sent)
      else wants.add(index)
    }
    // Keeps its turn: asking again is no way to the front.
    const { late = 0, lateAt = now, leftUntil = 0 } = before?.bundle === bundle ? before : {}
    this.#askers.set(device, { bundle, at: now, top, wants, served, late, lateAt, leftUntil })
    if (before?.bundle !== bundle) state.joinedAt = now
    state.askers.add(device)
    for (const index of wants) {
      const found = state.waiting.get(index) ?? { since: now, by: new Set() }
      state.waiting.set(index, found)
      found.by.add(device)
    }
  }

  /** The device is gone. */
  forget(device: string): void {
    const asker = this.#askers.get(device)
    if (asker === undefined) return
    this.#withdraw(device, asker)
    this.#askers.delete(device)
  }

  /** The broker is gone: what was on its way is lost, and who still waits will ask again. */
  clear(): void {
    this.#askers.clear()
    this.#bundles.clear()
  }

  /** The next piece, which counts as sent from now on; or the milliseconds until there may be one. */
  next(now: number): Job | { readonly waitMs: number } {
    this.#tidy(now)
    let waitMs = 3000
    const reach = new Map<Sha256, Reach>()
    for (const [device, asker] of this.#askers) {
      if (asker.wants.size === 0) continue
      const state = this.#bundles.get(asker.bundle)
      if (state === undefined) continue
      let common = reach.get(asker.bundle)
      if (common === undefined) {
        common = this.#reachOf(state, now)
        reach.set(asker.bundle, common)
      }
      for (const index of asker.wants) {
        const left = this.#ripeIn(state, index, common, now)
        if (left > 0) {
          waitMs = Math.min(waitMs, left)
          continue
        }
        if (index > common.all) this.#leave(state, index, now)
        const devices = this.#send(state, index, now)
        // To the end of the line.
        this.#askers.delete(device)
        this.#askers.set(device, asker)
        return { bundle: asker.bundle, index, devices }
      }
    }
    return { waitMs }
  }

  /** How far the devices have come that are at work on this bundle. */
  #reachOf(state: BundleState, now: number): Reach {
    const tops: number[] = []
    for (const device of state.askers) {
      const asker = this.#askers.get(device)
      if (asker !== undefined && now - asker.at < ACTIVE_MS && now >= asker.leftUntil) tops.push(asker.top)
    }
    tops.sort((a, b) => a - b)
    const all = tops[0] ?? Number.POSITIVE_INFINITY
    // All but a few: one of fifty, and one in any case.
    const most = tops[Math.max(1, Math.floor(tops.length / FEW))] ?? Number.POSITIVE_INFINITY
    // Those that were told of the same news come within moments of each other: only the head goes to the first of them.
    const { present } = this.#options
    const coming = now - state.joinedAt < NEXT_MS && now - state.since < OPENING_MS
    const opening = coming && (present?.() ?? 0) > state.askers.size
    return opening
      ? { all: Math.min(all, HEAD_PIECES - 1), most: Math.min(most, HEAD_PIECES - 1), opening }
      : { all, most, opening }
  }

  #ripeIn(state: BundleState, index: number, { all, most, opening }: Reach, now: number): number {
    const since = state.waiting.get(index)?.since ?? now
    const sent = state.sentAt.get(index)
    if (sent !== undefined && now - sent < ECHO_MS) return ECHO_MS - (now - sent)
    if (index <= all) return 0
    const { gatherMs } = this.#options
    if (opening) return NEXT_MS / 10
    return Math.max(0, since + (index <= most ? gatherMs : gatherMs * LONGER) - now)
  }

  /** Goes on without those that have not come so far, and counts it against them. */
  #leave(state: BundleState, index: number, now: number): void {
    for (const device of state.askers) {
      const asker = this.#askers.get(device)
      if (asker === undefined || asker.top >= index || now - asker.lateAt < this.#options.gatherMs) continue
      asker.lateAt = now
      if (++asker.late < LATE_TIMES) continue
      asker.late = 0
      asker.leftUntil = now + LEFT_MS
    }
  }

  #send(state: BundleState, index: number, now: number): string[] {
    const devices = [...(state.waiting.get(index)?.by ?? [])]
    for (const device of devices) {
      const asker = this.#askers.get(device)
      asker?.wants.delete(index)
      asker?.served.set(index, now)
    }
    state.waiting.delete(index)
    state.sentAt.set(index, now)
    return devices
  }

  #withdraw(device: string, { bundle, wants }: Asker): void {
    const state = this.#bundles.get(bundle)
    if (state === undefined) return
    state.askers.delete(device)
    for (const index of wants) {
      const found = state.waiting.get(index)
      if (found?.by.delete(device) === true && found.by.size === 0) state.waiting.delete(index)
    }
  }

  #tidiedAt = 0

  #tidy(now: number): void {
    if (now - this.#tidiedAt < 1000) return
    this.#tidiedAt = now
    for (const [device, asker] of this.#askers) if (now - asker.at > FORGET_MS) this.forget(device)
    for (const [bundle, state] of this.#bundles) {
      for (const [index, at] of state.sentAt) if (now - at > ECHO_MS) state.sentAt.delete(index)
      if (state.askers.size === 0) this.#bundles.delete(bundle)
    }
  }
}
