import { DEFAULT_BACKOFF, pauseFor } from '../broker/link.ts'
import { firstPause, placeOf, pollPause, retryPause } from '../device/policy/spread.ts'

/** A fleet whose server goes away and comes back, second by second, with the agent's own pauses. Pure. */

export interface Story {
  readonly name: string
  /** Tries per second, from the moment that starts it. */
  readonly tries: readonly number[]
  readonly peak: number
  /** No second may have more: the limit that docs/performance.md states, for this many devices. */
  readonly limit: number
  /** Bytes of one try that succeeds, both ways. */
  readonly bytes: number
  /** Second at which every device had succeeded; undefined: that is not what it is about. */
  readonly done: number | undefined
}

const HOUR = 3600
/** CONNECT with a will, the retained announcement and state, subscriptions, and a TLS 1.3 handshake: rounded up. */
const CONNECT_BYTES = 8192
/** As `npm run footprint` measures a check of a channel that has no news, with packet headers. */
const CHECK_BYTES = 2400

/** A generator of numbers 0 <= x < 1 that a seed repeats exactly (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const names = (devices: number) => Array.from({ length: devices }, (_, n) => `device-${n}`)

function counter(seconds: number) {
  const tries = new Array<number>(seconds).fill(0)
  const count = (ms: number) => {
    const second = Math.floor(ms / 1000)
    if (second < seconds) tries[second] = (tries[second] ?? 0) + 1
  }
  return { tries, count, peak: () => tries.reduce((most, value) => Math.max(most, value), 0) }
}

/**
 * Every connection breaks at second 0 and the broker is back after `awaySeconds`; then it takes `perSecond` connections a
 * second and refuses the others.
 */
export function brokerRestart(devices: number, awaySeconds: number, perSecond: number): Story {
  const { tries, count, peak } = counter(1800)
  const seconds = Array.from({ length: 1800 }, (): { name: string; failures: number; at: number }[] => [])
  const put = (name: string, failures: number, at: number) =>
    seconds[Math.floor(at / 1000)]?.push({ name, failures, at })
  for (const name of names(devices)) put(name, 1, pauseFor(name, 0, DEFAULT_BACKOFF))
  let done = 0
  for (const [second, due] of seconds.entries()) {
    // Whoever comes first in a second is taken.
    due.sort((a, b) => a.at - b.at)
    let taken = 0
    for (const { name, failures, at } of due) {
      count(at)
      if (second >= awaySeconds && taken < perSecond) {
        taken++
        done = second
      } else put(name, failures + 1, at + Math.max(1, pauseFor(name, failures, DEFAULT_BACKOFF)))
    }
  }
  const room = perSecond === Number.POSITIVE_INFINITY ? 'takes all' : `takes ${perSecond} a second`
  // Those whose first try came too early try again among the late ones.
  const limit = 2 * (devices / (DEFAULT_BACKOFF.firstMs / 1000))
  return { name: `broker away for ${awaySeconds} s, ${room}`, tries, peak: peak(), limit, bytes: CONNECT_BYTES, done }
}

/** Everything is switched on at once and then checks every hour for a day. */
export function powerOn(devices: number): Story {
  const { tries, count, peak } = counter(24 * HOUR)
  const random = randomFrom(1)
  for (let n = 0; n < devices; n++)
    for (let at = firstPause(HOUR * 1000, random()); at < 24 * HOUR * 1000; at += pollPause(HOUR * 1000, random()))
      count(at)
  return {
    name: 'all switched on at once, a check an hour',
    tries,
    peak: peak(),
    limit: 1.5 * (devices / 60),
    bytes: CHECK_BYTES,
    done: undefined,
  }
}

/** The web server is away for two hours, and every device has met it. */
export function serverAway(devices: number): Story {
  const { tries, count, peak } = counter(3 * HOUR)
  const random = randomFrom(2)
  let done = 0
  for (let n = 0; n < devices; n++) {
    let at = pollPause(HOUR * 1000, random()) * random()
    for (let failures = 1; at < 2 * HOUR * 1000; failures++) {
      count(at)
      at += retryPause(HOUR * 1000, failures, true, random())
    }
    count(at)
    done = Math.max(done, Math.floor(at / 1000))
  }
  return {
    name: 'web server away for two hours',
    tries,
    peak: peak(),
    limit: 1.5 * (devices / 75),
    bytes: CHECK_BYTES,
    done: done - 2 * HOUR,
  }
}

/** All hear of a release at once and start to download over an hour, by `spreadSeconds`. */
export function spreadDownload(devices: number): Story {
  const { tries, count, peak } = counter(HOUR)
  for (const name of names(devices)) count(placeOf(name, 'download') * HOUR * 1000)
  return {
    name: 'downloads start over an hour',
    tries,
    peak: peak(),
    limit: devices / HOUR + 6 * Math.sqrt(devices / HOUR) + 1,
    bytes: 0,
    done: undefined,
  }
}

export const stories = (devices: number): readonly Story[] => [
  brokerRestart(devices, 5, Number.POSITIVE_INFINITY),
  brokerRestart(devices, 60, devices / 50),
  powerOn(devices),
  serverAway(devices),
  spreadDownload(devices),
]
