/**
 * Who is waited for. The fast wait for the slow as long as the slow cost them no more than a fair share of the time, so
 * that what all want is sent once; one that costs more is left to itself for a while. Time counts only while nothing
 * else could be sent, and what counts as slow grows with what the devices need at present: on a machine, a network or
 * a broker that is busy, all of them are late together. Pure but for what it remembers.
 */

/** Of the time since a device came, and since the first one did: the fast go on at a quarter of their pace at least. */
const SHARE = 0.75
/** All devices together may keep the others waiting so many times longer at the start than one of them. */
const TOGETHER = 4
/** For how long a device is left; doubles each time. */
const LEFT_MS = 30_000
const LEFT_MOST_MS = 480_000
/** A device is waited for when it is late by so many times what most devices need. */
const PATIENCE = 3
const SILENT_MS = 15_000
const USUAL_MOST_MS = 20_000
const SAMPLES = 128
/** More devices of one bundle than this are served, but not waited for. */
const MAX_DEVICES = 50_000

/** How long it takes from sending a piece until a device says that it has it: what nine of ten need, lately. */
export class Usual {
  readonly #samples: number[] = []
  #next = 0
  #ms: number | undefined

  add(ms: number): void {
    this.#samples[this.#next] = ms
    this.#next = (this.#next + 1) % SAMPLES
    this.#ms = undefined
  }

  /** Milliseconds; 0 when nothing is known. */
  get ms(): number {
    this.#ms ??= [...this.#samples].sort((a, b) => a - b)[Math.floor(this.#samples.length * 0.9)] ?? 0
    return Math.min(this.#ms, USUAL_MOST_MS)
  }
  /** One that says nothing for so long is not waited for. */
  get silentMs(): number {
    return Math.max(SILENT_MS, PATIENCE * this.ms)
  }
}

interface Cost {
  readonly since: number
  ms: number
  leftUntil: number
  times: number
}

/** What waiting for each device has cost the others, of one bundle and one kind of pieces. */
export class Costs {
  readonly #usual: Usual
  /** What a device may cost before its share counts. */
  readonly #graceMs: number
  readonly #since: number
  readonly #devices = new Map<string, Cost>()
  #ms = 0

  constructor(graceMs: number, usual: Usual, now: number) {
    this.#graceMs = graceMs
    this.#usual = usual
    this.#since = now
  }

  /** It came: its share counts from now on. */
  join(device: string, now: number): void {
    if (this.#devices.has(device) || this.#devices.size >= MAX_DEVICES) return
    this.#devices.set(device, { since: now, ms: 0, leftUntil: 0, times: 0 })
  }

  /** Nor is one waited for that is too many to be remembered. */
  left(device: string, now: number): boolean {
    return now < (this.#devices.get(device)?.leftUntil ?? Number.POSITIVE_INFINITY)
  }

  /** The others waited so long for the first of these, who is the last of all; together they are all that is behind. */
  charge(behind: readonly string[], ms: number, now: number): void {
    const grace = Math.max(this.#graceMs, PATIENCE * this.#usual.ms)
    this.#ms += ms
    const [last = ''] = behind
    const cost = this.#devices.get(last)
    if (cost === undefined) return
    cost.ms += ms
    if (this.#ms > TOGETHER * grace + SHARE * (now - this.#since)) for (const device of behind) this.#leave(device, now)
    else if (cost.ms > grace + SHARE * (now - cost.since)) this.#leave(last, now)
  }

  #leave(device: string, now: number): void {
    const cost = this.#devices.get(device)
    if (cost !== undefined) cost.leftUntil = now + Math.min(LEFT_MOST_MS, LEFT_MS * 2 ** cost.times++)
  }
}
