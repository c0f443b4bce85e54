import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { Schedule } from '../../publisher/mqtt/schedule.ts'
import { type SimDevice, simulate } from './schedule-sim.ts'

// Which piece is sent next, and how often: on a clock of its own, with devices of every kind.

const X = 'aa'.repeat(32) as Sha256
const Y = 'bb'.repeat(32) as Sha256
const numbers = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

/** Everything that is sent from `now` on without waiting. */
function drain(schedule: Schedule, now: number): string[] {
  const sent: string[] = []
  for (;;) {
    const next = schedule.next(now)
    if ('waitMs' in next) return sent
    sent.push(`${next.bundle.slice(0, 1)}${next.index}`)
  }
}

describe('the order of sending', () => {
  it('one device gets what it asks for at once, in order', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    schedule.ask('a', X, numbers(0, 5), {}, 0)
    expect(drain(schedule, 0)).toEqual(['a0', 'a1', 'a2', 'a3', 'a4'])
    expect(schedule.waiting).toBe(0)
    // Asking for what is on its way is no new wish.
    expect(schedule.ask('a', X, numbers(3, 7), {}, 100)).toBe(false)
    expect(drain(schedule, 100)).toEqual(['a5', 'a6'])
  })

  it('however late a piece is, it is sent again only to who heard what was said after it', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    schedule.ask('a', X, numbers(0, 5), {}, 0)
    drain(schedule, 0)
    expect(schedule.sent).toBe(5)
    // An hour of asking again gets it a mark each time.
    for (let now = 5000; now < 3_600_000; now += 80_000) {
      expect(schedule.ask('a', X, numbers(2, 5), { again: true }, now)).toBe(true)
      expect(drain(schedule, now)).toEqual([])
    }
    // All but the last two of the first five were said before what it heard.
    expect(schedule.ask('a', X, numbers(2, 5), { mark: 3 }, 3_600_000)).toBe(false)
    expect(drain(schedule, 3_600_000)).toEqual(['a2'])
    schedule.ask('a', X, numbers(2, 5), { mark: 5 }, 3_600_001)
    expect(drain(schedule, 3_600_001)).toEqual(['a3', 'a4'])
    // One that came anew says so first: nothing is on its way to it.
    schedule.ask('a', X, [], {}, 3_600_010)
    schedule.ask('a', X, numbers(2, 5), {}, 3_607_000)
    expect(drain(schedule, 3_607_000)).toEqual(['a2', 'a3', 'a4'])
  })

  it('what went out just before somebody asked may be on its way to it: a mark decides', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    schedule.ask('a', X, numbers(0, 3), {}, 0)
    drain(schedule, 0)
    expect(schedule.ask('b', X, numbers(0, 3), {}, 100)).toBe(true)
    expect(drain(schedule, 100)).toEqual([])
    expect(schedule.ask('b', X, numbers(1, 3), { mark: 3 }, 150)).toBe(false)
    expect(drain(schedule, 150)).toEqual(['a1', 'a2'])
    // Much later there is no question.
    expect(schedule.ask('c', X, numbers(0, 3), {}, 9000)).toBe(false)
    expect(drain(schedule, 9000)).toEqual(['a0', 'a1', 'a2'])
  })

  it('the fast wait for the slow, and what all want is sent once', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    for (const device of ['a', 'b', 'c']) schedule.ask(device, X, numbers(0, 8), {}, 0)
    expect(drain(schedule, 0)).toEqual(numbers(0, 8).map((n) => `a${n}`))
    schedule.ask('a', X, numbers(8, 16), {}, 100)
    schedule.ask('b', X, numbers(8, 16), {}, 200)
    expect(drain(schedule, 300)).toEqual([])
    schedule.ask('c', X, numbers(8, 16), {}, 400)
    expect(drain(schedule, 400)).toEqual(numbers(8, 16).map((n) => `a${n}`))
  })

  it('but not for ever: one that never comes along costs the others a second at first, then a share of the time', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    let now = 0
    schedule.ask('slow', X, numbers(0, 10), {}, now)
    schedule.ask('fast', X, numbers(0, 10), {}, now)
    drain(schedule, now)
    const waits: number[] = []
    for (let from = 10; from < 40; from += 2) {
      schedule.ask('slow', X, [9], { again: true }, now)
      schedule.ask('fast', X, numbers(from, from + 2), {}, now)
      const asked = now
      while (!drain(schedule, now).includes(`a${from}`)) now += 100
      waits.push(now - asked)
    }
    // A second, and three quarters of the time since it came.
    expect(waits[0]).toBeGreaterThan(1000)
    expect(waits[0]).toBeLessThanOrEqual(4200)
    expect(waits.slice(1).every((ms) => ms === 0)).toBe(true)
    // When it is waited for again, it has used up its share.
    now += 31_000
    schedule.ask('slow', X, [9], { again: true }, now)
    schedule.ask('fast', X, numbers(40, 42), {}, now)
    expect(drain(schedule, now)).toEqual([])
  })

  it('the first of many that are there gets the head only, until the others come', () => {
    let present = 3
    const schedule = new Schedule({ gatherMs: 1000, present: () => present })
    schedule.ask('a', X, numbers(0, 12), {}, 0)
    expect(drain(schedule, 0)).toEqual(numbers(0, 8).map((n) => `a${n}`))
    schedule.ask('b', X, numbers(0, 12), {}, 300)
    schedule.ask('c', X, numbers(0, 12), {}, 300)
    // What was asked for first goes first; each piece once.
    expect(drain(schedule, 300).sort()).toEqual(
      numbers(0, 12)
        .map((n) => `a${n}`)
        .sort(),
    )
    present = 1
    schedule.ask('d', Y, numbers(0, 12), {}, 300)
    expect(drain(schedule, 300)).toHaveLength(12)
  })

  it('devices take turns, whatever they fetch and however much they ask for', () => {
    const schedule = new Schedule({ gatherMs: 0 })
    schedule.ask('greedy', X, numbers(0, 100), {}, 0)
    schedule.ask('modest', Y, numbers(0, 3), {}, 0)
    // Asking again is no way to the front.
    expect(drain(schedule, 0).slice(0, 6)).toEqual(['a0', 'b0', 'a1', 'b1', 'a2', 'b2'])
  })

  it('what is not wanted any more is not sent', () => {
    const schedule = new Schedule({ gatherMs: 0 })
    schedule.ask('a', X, numbers(0, 9), {}, 0)
    schedule.ask('a', X, [], {}, 0)
    schedule.ask('b', X, numbers(0, 9), {}, 0)
    schedule.forget('b')
    schedule.ask('c', X, numbers(0, 9), {}, 0)
    schedule.clear()
    expect(drain(schedule, 0)).toEqual([])
    schedule.ask('d', X, numbers(0, 9), {}, 0)
    // The longest pause between two questions is 80 s.
    expect(drain(schedule, 101_000)).toEqual([])
    expect(schedule.waiting).toBe(0)
  })

  it('who asked what a bundle is will ask for pieces: the others wait for it, within limits', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    schedule.expect('slow', X, 0)
    schedule.ask('a', X, numbers(0, 12), {}, 0)
    expect(drain(schedule, 0)).toEqual(numbers(0, 8).map((n) => `a${n}`))
    schedule.ask('slow', X, numbers(0, 12), {}, 900)
    expect(drain(schedule, 2000).sort()).toContain('a11')
    schedule.expect('never', X, 3000)
    schedule.ask('a', X, numbers(12, 14), {}, 3000)
    schedule.ask('slow', X, numbers(12, 14), {}, 3000)
    expect(drain(schedule, 3000)).toEqual([])
    let now = 3000
    while (drain(schedule, now).length === 0) now += 100
    expect(now).toBeGreaterThan(4000)
    expect(now).toBeLessThan(15_000)
  })
})

/** Numbers between 0 and 1 that are the same each time. */
function dice(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    return state / 0x80000000
  }
}

describe('a hundred devices and a clock of their own', () => {
  const PIECES = 256
  const fleet = (seed: number, make: (roll: () => number, i: number) => SimDevice): SimDevice[] => {
    const roll = dice(seed)
    return Array.from({ length: 100 }, (_, i) => make(roll, i))
  }

  it.each<[string, SimDevice[]]>([
    ['of one speed', fleet(1, () => ({ joins: 0, pieceMs: 5, latency: 5 }))],
    [
      'up to four times slower than the fastest, each as far away as it likes',
      fleet(2, (roll) => ({ joins: roll() * 2000, pieceMs: 5 + 15 * roll(), latency: 5 + roll() * 300 })),
    ],
    [
      'on a machine that is far too slow for them: every message takes up to 2.5 s',
      fleet(3, (roll) => ({ joins: roll() * 4000, pieceMs: 20 + 30 * roll(), latency: 5 + roll() * 2500 })),
    ],
    [
      'each of which gets no processor for up to five seconds now and then',
      fleet(4, (roll) => ({
        ...{ joins: roll() * 3000, pieceMs: 5 + 15 * roll(), latency: 5 + roll() * 500 },
        away: [5000, 25_000].map((from) => {
          const starts = from + roll() * 15_000
          return [starts, starts + roll() * 5000] as const
        }),
      })),
    ],
    [
      'of which one message in 5000 is lost',
      fleet(5, (roll) => ({ joins: roll() * 2000, pieceMs: 5 + 15 * roll(), latency: 5 + roll() * 300, loses: 5000 })),
    ],
    [
      'one of which is switched off in the middle of it',
      fleet(6, (roll, i) => ({
        ...{ joins: roll() * 2000, pieceMs: 5, latency: 5 + roll() * 300 },
        ...(i === 7 ? { away: [[4000, 1e9]] as const } : {}),
      })),
    ],
  ])('%s: each piece is sent at most 1.2 times', (what, devices) => {
    const { sentEach, done } = simulate(devices, PIECES)
    expect(sentEach).toBeGreaterThanOrEqual(1)
    expect(sentEach).toBeLessThanOrEqual(1.2)
    expect(done.filter((at) => at === 0)).toHaveLength(what.includes('switched off') ? 1 : 0)
  })

  it('one that is a hundred times slower does not keep the others for long, and has everything in the end', () => {
    const slow = { joins: 0, pieceMs: 500, latency: 50 }
    const devices = fleet(7, (roll, i) =>
      i === 7 ? slow : { joins: roll() * 2000, pieceMs: 5, latency: 5 + roll() * 300 },
    )
    const alone = Math.max(
      ...simulate(
        devices.filter((one) => one !== slow),
        PIECES,
      ).done,
    )
    const { sentEach, done } = simulate(devices, PIECES)
    // Ten seconds, and three quarters of the time until it is left.
    expect(Math.max(...done.filter((_, i) => i !== 7))).toBeLessThan(alone + 50_000)
    expect(done[7]).toBeGreaterThan(0)
    // It gets what it lacks once more, and nobody else does.
    expect(sentEach).toBeLessThanOrEqual(2)
  })

  it('those that come late get what they lack once, together', () => {
    const devices = fleet(8, (roll, i) => ({
      ...{ joins: i < 20 ? 30_000 + roll() * 2000 : roll() * 2000, pieceMs: 10, latency: 5 + roll() * 300 },
      ...(i < 20 ? { from: PIECES - 100 } : {}),
    }))
    const { sentEach, done } = simulate(devices, PIECES)
    expect(Math.max(...done.slice(20))).toBeLessThan(30_000)
    expect(sentEach).toBeLessThanOrEqual(1.2 * (1 + 100 / PIECES))
  })
})
