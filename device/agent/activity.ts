import { deviceErrors } from '../errors.ts'
import type { Wait } from '../policy/gate.ts'
import type { AddonStatus } from './addons.ts'
import type { DriftSeen } from './drift-watch.ts'
import type { Clock, Ports } from './ports.ts'

/** What the agent is at, in memory only: the one operation that may run, whether it moves, and what it waits for. */

/** What is told to whoever watches. */
export type Notice =
  | { readonly line: string }
  | { readonly progress: { readonly what: string } & Readonly<Record<string, unknown>> }
  | { readonly state: string }

/** A commit that waits for a person. */
export interface Held extends Omit<Wait, 'code'> {
  readonly code: 'COMMIT_HELD'
}

interface Work {
  readonly what: string
  readonly since: string
  readonly abort: AbortController
  /** Milliseconds without a sign of life after which it is stopped. */
  readonly patienceMs: number
  beatAt: number
  stoppedAt: number | undefined
}

/** Operations that show no progress while they work. */
const SILENT_MS = 3_600_000
const SILENT = ['unlock', 'verify', 'health', 'commit', 'rollback', 'reboot', 'repair']
/** An operation that was stopped and did not end: something below it hangs, and only a new process helps. */
const GRACE_MS = 60_000
/** Two checks that were asked for from outside are at least this far apart, however often they are asked for. */
const WAKE_GAP_MS = 5000
const MAX_WATCHERS = 32

export class Activity {
  readonly #clock: Clock
  readonly #pid: number
  readonly #stallMs: number
  readonly #relax: (() => void) | undefined
  #work: Work | undefined
  #woken = false
  #wokenAt = Number.NEGATIVE_INFINITY
  #wake: (() => void) | undefined
  readonly #watchers = new Set<(notice: Notice) => void>()
  readonly #wanted = new Map<string, { readonly what: string; readonly since: number }>()
  /** Why the next step by policy is not taken yet. */
  waiting: Wait | Held | undefined
  /** As they were when they were looked at last; undefined: not yet. */
  addons: readonly AddonStatus[] | undefined
  /** The last count of what differs from the release. */
  drift: DriftSeen | undefined
  /** The last such reason that was said. */
  told: string | undefined
  /** The place in every spread of a device that has no id, 0 <= value < 1; drawn anew when the agent starts. */
  readonly lot: number

  constructor(ports: Pick<Ports, 'clock' | 'pid' | 'random' | 'relax'>, stallMs: number) {
    this.#relax = ports.relax
    this.#clock = ports.clock
    this.#pid = ports.pid
    this.#stallMs = stallMs
    this.lot = ports.random()
  }

  get busyWith(): { readonly what: string; readonly since: string } | undefined {
    return this.#work
  }

  /** Runs one operation; a second one meanwhile gets AGENT_BUSY. Its signal is aborted by `stop` and by `outer`. */
  async exclusive<T>(what: string, outer: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#work !== undefined) {
      throw deviceErrors.AGENT_BUSY(`process ${this.#pid} is busy with ${this.#work.what} since ${this.#work.since}`)
    }
    const abort = new AbortController()
    const patienceMs = SILENT.includes(what) ? SILENT_MS : this.#stallMs
    const mine: Work = {
      what,
      since: this.#clock.wall().toISOString(),
      abort,
      patienceMs,
      beatAt: this.#clock.now(),
      stoppedAt: undefined,
    }
    this.#work = mine
    const stop = () => this.stop(deviceErrors.AGENT_CANCELLED(`${what} was stopped`))
    if (outer.aborted) stop()
    outer.addEventListener('abort', stop, { once: true })
    try {
      return await work(abort.signal)
    } finally {
      outer.removeEventListener('abort', stop)
      this.#work = undefined
      // Not at once: who asked for it still holds its result.
      if (this.#relax !== undefined) setImmediate(this.#relax)
    }
  }

  /** Stops the operation that runs. @returns false when there is none */
  stop(error: Error): boolean {
    const work = this.#work
    if (work === undefined) return false
    work.stoppedAt ??= this.#clock.now()
    work.abort.abort(error)
    return true
  }

  /** A sign of life of the operation that runs, told to whoever watches. */
  beat(progress?: object): void {
    if (this.#work === undefined) return
    this.#work.beatAt = this.#clock.now()
    if (progress !== undefined && this.#watchers.size > 0)
      this.tell({ progress: { what: this.#work.what, ...progress } })
  }

  /**
   * Stops an operation that shows no sign of life.
   * @throws AGENT_STUCK when one that was stopped has not ended: the process has to
   */
  watch(): void {
    const work = this.#work
    if (work === undefined) return
    const now = this.#clock.now()
    if (work.stoppedAt === undefined) {
      if (now - work.beatAt >= work.patienceMs) {
        const message = `${work.what} made no progress for ${Math.round(work.patienceMs / 1000)} s`
        this.stop(deviceErrors.AGENT_STALLED(message))
      }
    } else if (now - work.stoppedAt >= GRACE_MS) {
      throw deviceErrors.AGENT_STUCK(`${work.what} was stopped ${GRACE_MS / 1000} s ago and has not ended`)
    }
  }

  /** Asks for a check now. Many at once are one; storms are held down to one check every five seconds. */
  wake(): void {
    this.#woken = true
    this.#wake?.()
  }

  /** Waits between two checks: until `ms` have passed, `wake` is called, or the signal is aborted. Never rejects. */
  async pause(ms: number, signal: AbortSignal): Promise<void> {
    const end = new AbortController()
    const stop = () => end.abort()
    if (signal.aborted) return
    signal.addEventListener('abort', stop, { once: true })
    this.#wake = stop
    if (this.#woken) stop()
    await this.#clock.sleep(ms, end.signal).catch(() => undefined)
    this.#wake = undefined
    if (this.#woken && !signal.aborted) {
      const gap = this.#wokenAt + WAKE_GAP_MS - this.#clock.now()
      if (gap > 0) await this.#clock.sleep(gap, signal).catch(() => undefined)
      this.#wokenAt = this.#clock.now()
      this.#woken = false
    }
    signal.removeEventListener('abort', stop)
  }

  /** Since when something has been wanted (milliseconds since 1970); another `what` starts anew. */
  wantedSince(step: string, what: string, wall: number): number {
    const known = this.#wanted.get(step)
    if (known?.what === what && known.since <= wall) return known.since
    this.#wanted.set(step, { what, since: wall })
    return wall
  }

  /** @returns a function that ends it; undefined when too many watch already */
  subscribe(watcher: (notice: Notice) => void): (() => void) | undefined {
    if (this.#watchers.size >= MAX_WATCHERS) return undefined
    this.#watchers.add(watcher)
    return () => this.#watchers.delete(watcher)
  }

  tell(notice: Notice): void {
    for (const watcher of this.#watchers) watcher(notice)
  }
}
