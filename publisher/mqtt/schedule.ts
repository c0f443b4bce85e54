import type { Sha256 } from '../../base/bytes.ts'
import type { Asker, BundleState, Front, Sent } from './at-work.ts'
import { Costs, Usual } from './pace.ts'

/**
 * Which piece is sent next. Pure but for what it remembers; the time comes in. What many devices wait for is sent once:
 * a piece goes out when every device that will soon ask for it has asked (pace.ts says who is waited for, and how long).
 * Nothing is sent twice because it is late: a piece counts as lost only when the device heard something that was said
 * after it (a mark). Devices take turns, so that no number of requests gets one device more than its share.
 */

export interface Job {
  readonly bundle: Sha256
  readonly index: number
  /** How many pieces were sent until now, this one included. */
  readonly number: number
  /** Devices that wait for it. */
  readonly devices: readonly string[]
}

export interface ScheduleOptions {
  /** How long one device may keep the others waiting before its pace counts. Milliseconds; 0: nobody waits. */
  readonly gatherMs: number
  /** Devices that are there and may want the same; while there are more than ask, the first of them wait for the others. */
  readonly present?: () => number
}

/** What a device that says nothing more asked for is forgotten: longer than the longest pause between its questions. */
const FORGET_MS = 100_000
/** A bundle that nobody asks for is forgotten. */
const IDLE_MS = 10_000
/** Who is further behind than this is not about to ask for the same (8 MiB: four windows). */
const NEAR = 256
/** A few that are ahead of most wait for them so long. */
const AHEAD_MS = 30_000
/** A piece that went out so lately may still be on its way to who asks for it now; more when everything is slow. */
const ECHO_MS = 200
const ECHO_MOST_MS = 5000
/** The head of a bundle: small, and the first that each device reads. It goes to the first that asks at once. */
const HEAD_PIECES = 8
/** How long the first devices at a bundle wait for the next one that comes, and for all of them. */
const NEXT_MS = 1000
const OPENING_MS = 10_000
/** How often it is looked at who keeps the others waiting; of a longer pause only so much counts. */
const ASSESS_MS = 100
const COUNTED_MS = 1000
/** Pieces of which it is remembered how often they were sent. */
const MAX_SENT = 65_536
const MAX_COMING = 20_000

export interface Heard {
  readonly again?: boolean
  readonly mark?: number
}

export class Schedule {
  readonly #options: ScheduleOptions
  /** In the order of their turns. */
  readonly #askers = new Map<string, Asker>()
  readonly #bundles = new Map<Sha256, BundleState>()
  readonly #usual = new Usual()
  #sent = 0
  #tidiedAt = 0

  constructor(options: ScheduleOptions) {
    this.#options = options
  }

  /** Pieces sent until now. */
  get sent(): number {
    return this.#sent
  }
  /** Devices that wait for something. */
  get waiting(): number {
    let n = 0
    for (const { wants } of this.#askers.values()) if (wants.size > 0) n++
    return n
  }

  /** A device asked what this bundle is: it will ask for pieces. */
  expect(device: string, bundle: Sha256, now: number): void {
    if (this.#askers.get(device)?.bundle === bundle) return
    const state = this.#stateOf(bundle, now)
    if (state.coming.has(device) || state.coming.size >= MAX_COMING) return
    state.coming.set(device, now)
    this.#joined(state, device, now)
  }

  /**
   * A device says what it waits for now; what it said before is void.
   * @param pieces ascending; the caller bounds them. Empty: it waits for nothing any more
   * @param heard it heard all that is for it of the first so many pieces sent (`mark`): what it lacks of them is lost;
   * or it waited long enough to wonder whether it is (`again`)
   * @returns true when some of it may still be on its way: tell it a mark, so that it knows
   */
  ask(device: string, bundle: Sha256, pieces: readonly number[], heard: Heard, now: number): boolean {
    const before = this.#askers.get(device)
    if (before !== undefined) this.#withdraw(device, before)
    const top = pieces.at(-1)
    if (top === undefined) {
      this.#askers.delete(device)
      return false
    }
    const state = this.#stateOf(bundle, now)
    const same = before?.bundle === bundle ? before : undefined
    const echo = Math.max(ECHO_MS, Math.min(ECHO_MOST_MS, this.#usual.ms))
    const served = new Map<number, Sent>()
    const wants = new Set<number>()
    let crossing = false
    for (const index of pieces) {
      const mine = same?.served.get(index)
      const last = state.sent.get(index)
      const sent = mine ?? (last !== undefined && now - last.at < echo ? last : undefined)
      if (sent !== undefined && sent.number > (heard.mark ?? 0)) {
        served.set(index, sent)
        crossing ||= mine === undefined || heard.again === true
      } else wants.add(index)
    }
    this.#learn(same, served, wants, now)
    // Keeps its turn: asking again is no way to the front.
    this.#askers.set(device, { bundle, at: now, top, wants, served })
    if (same === undefined && !state.coming.delete(device)) this.#joined(state, device, now)
    state.askers.add(device)
    state.askedAt = now
    state.fronts = [undefined, undefined]
    for (const index of wants) {
      const found = state.waiting.get(index) ?? { since: now, by: new Set() }
      state.waiting.set(index, found)
      found.by.add(device)
    }
    return crossing
  }

  /** The device is gone. */
  forget(device: string): void {
    for (const state of this.#bundles.values()) if (state.coming.delete(device)) state.fronts = [undefined, undefined]
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
    const asked = new Map<Sha256, Map<number, number>>()
    for (const [device, asker] of this.#askers) {
      const state = this.#bundles.get(asker.bundle)
      if (state === undefined || asker.wants.size === 0) continue
      const known = asked.get(asker.bundle) ?? new Map<number, number>()
      asked.set(asker.bundle, known)
      for (const index of asker.wants) {
        const left = known.get(index) ?? this.#ripeIn(state, index, now)
        known.set(index, left)
        if (left > 0) {
          waitMs = Math.min(waitMs, left)
          continue
        }
        const devices = this.#send(state, index, now)
        // To the end of the line.
        this.#askers.delete(device)
        this.#askers.set(device, asker)
        return { bundle: asker.bundle, index, number: this.#sent, devices }
      }
    }
    return { waitMs }
  }

  #stateOf(bundle: Sha256, now: number): BundleState {
    const found = this.#bundles.get(bundle)
    if (found !== undefined) return found
    const costs = () => new Costs(this.#options.gatherMs, this.#usual, now)
    const state: BundleState = {
      ...{ since: now, joinedAt: now, askedAt: now, assessedAt: now },
      ...{ waiting: new Map(), askers: new Set(), coming: new Map(), sent: new Map() },
      costs: [costs(), costs()],
      fronts: [undefined, undefined],
    }
    this.#bundles.set(bundle, state)
    return state
  }

  #joined(state: BundleState, device: string, now: number): void {
    state.joinedAt = now
    state.fronts = [undefined, undefined]
    for (const costs of state.costs) costs.join(device, now)
  }

  /** What it does not name any more has arrived. */
  #learn(before: Asker | undefined, served: ReadonlyMap<number, Sent>, wants: ReadonlySet<number>, now: number): void {
    if (before === undefined) return
    let longest: number | undefined
    for (const [index, { at }] of before.served)
      if (!served.has(index) && !wants.has(index)) longest = Math.max(longest ?? 0, now - at)
    if (longest !== undefined) this.#usual.add(longest)
  }

  /** Devices that are waited for with pieces of this kind, those that have not come far first. */
  #front(state: BundleState, kind: 0 | 1, now: number): Front['tops'] {
    const found = state.fronts[kind]
    if (found !== undefined && now - found.at < ASSESS_MS) return found.tops
    const tops: { device: string; top: number }[] = []
    const { silentMs } = this.#usual
    const costs = state.costs[kind]
    for (const [device, at] of state.coming)
      if (now - at < silentMs && !costs.left(device, now)) tops.push({ device, top: -1 })
    for (const device of state.askers) {
      const asker = this.#askers.get(device)
      if (asker === undefined || now - asker.at >= silentMs || costs.left(device, now)) continue
      tops.push({ device, top: asker.top })
    }
    tops.sort((a, b) => a.top - b.top)
    state.fronts[kind] = { at: now, tops }
    return tops
  }

  /** Devices that will soon ask for this piece. */
  #behind(state: BundleState, index: number, kind: 0 | 1, now: number): Front['tops'] {
    const tops = this.#front(state, kind, now)
    if ((tops[0]?.top ?? index) >= index) return []
    return tops.filter(({ top }) => top < index && top >= index - NEAR)
  }

  #ripeIn(state: BundleState, index: number, now: number): number {
    const { gatherMs, present } = this.#options
    const kind = state.sent.has(index) ? 1 : 0
    if (gatherMs === 0 || (kind === 0 && index < HEAD_PIECES)) return 0
    const { since, by } = state.waiting.get(index) ?? { since: now, by: new Set<string>() }
    // Those that were told of the same news come within moments of each other.
    const gathering = now - (kind === 0 ? state.since : since) < OPENING_MS && now - state.joinedAt < NEXT_MS
    if (gathering && (present?.() ?? 0) > state.askers.size) return ASSESS_MS
    const behind = this.#behind(state, index, kind, now)
    if (behind.length === 0) return 0
    // It is not the many who are slow when a few are ahead.
    return behind.length > by.size ? Math.min(ASSESS_MS, Math.max(0, since + AHEAD_MS - now)) : ASSESS_MS
  }

  #send(state: BundleState, index: number, now: number): string[] {
    const sent: Sent = { number: ++this.#sent, at: now }
    const devices = [...(state.waiting.get(index)?.by ?? [])]
    for (const device of devices) {
      const asker = this.#askers.get(device)
      asker?.wants.delete(index)
      asker?.served.set(index, sent)
    }
    // Others that listen hear it too: it may be this one that reaches them.
    if (state.sent.delete(index))
      for (const device of state.askers) {
        const served = this.#askers.get(device)?.served
        if (served?.has(index)) served.set(index, sent)
      }
    state.waiting.delete(index)
    state.sent.set(index, sent)
    const [oldest] = state.sent.keys()
    if (state.sent.size > MAX_SENT && oldest !== undefined) state.sent.delete(oldest)
    return devices
  }

  /** Counts the time against whoever keeps the others waiting, when nothing of this bundle can be sent. */
  #assess(state: BundleState, now: number): void {
    const ms = now - state.assessedAt
    if (ms < ASSESS_MS) return
    state.assessedAt = now
    const lowest: [number | undefined, number | undefined] = [undefined, undefined]
    for (const index of state.waiting.keys()) {
      if (this.#ripeIn(state, index, now) === 0) return
      const kind = state.sent.has(index) ? 1 : 0
      lowest[kind] = Math.min(lowest[kind] ?? index, index)
    }
    for (const kind of [0, 1] as const) {
      const index = lowest[kind]
      if (index === undefined) continue
      const behind = this.#behind(state, index, kind, now).map(({ device }) => device)
      if (behind.length === 0 || behind.length > (state.waiting.get(index)?.by.size ?? 0)) continue
      state.costs[kind].charge(behind, Math.min(ms, COUNTED_MS), now)
      state.fronts[kind] = undefined
    }
  }

  #withdraw(device: string, { bundle, wants }: Asker): void {
    const state = this.#bundles.get(bundle)
    if (state === undefined) return
    state.askers.delete(device)
    state.fronts = [undefined, undefined]
    for (const index of wants) {
      const found = state.waiting.get(index)
      if (found?.by.delete(device) === true && found.by.size === 0) state.waiting.delete(index)
    }
  }

  #tidy(now: number): void {
    for (const state of this.#bundles.values()) this.#assess(state, now)
    if (now - this.#tidiedAt < 1000) return
    this.#tidiedAt = now
    for (const [device, asker] of this.#askers) if (now - asker.at > FORGET_MS) this.forget(device)
    for (const [bundle, state] of this.#bundles) {
      for (const [device, at] of state.coming) if (now - at > FORGET_MS) state.coming.delete(device)
      if (state.askers.size === 0 && now - state.askedAt > IDLE_MS) this.#bundles.delete(bundle)
    }
  }
}
