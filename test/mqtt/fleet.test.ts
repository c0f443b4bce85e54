import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { Schedule } from '../../publisher/mqtt/schedule.ts'
import { measureFleet } from '../../scripts/mqtt-fleet.ts'

// What many devices want is sent once. 'npm run mqtt-fleet' does the same with a hundred devices; docs/mqtt.md has its figures.

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

describe('a fleet that installs together', () => {
  it.each(['embedded'] as const)(
    'over %s: each piece is sent at most 1.2 times, and to a late one only what it lacks',
    async (broker) => {
      const plan = { devices: 10, mib: 8, processes: 0, broker, spreadMs: 300, uneven: 1.5 }
      const { sentEach, pieces } = await measureFleet({ ...plan, late: false })
      expect(pieces).toBe(256)
      expect(sentEach).toBeGreaterThanOrEqual(1)
      expect(sentEach).toBeLessThanOrEqual(1.2)
      const { lateHeard, lateLacked } = await measureFleet({ ...plan, devices: 3, late: true })
      // A message is its data and 44 bytes.
      expect(lateHeard).toBeGreaterThanOrEqual(lateLacked)
      expect(lateHeard).toBeLessThanOrEqual(lateLacked * 1.1)
    },
  )
})

describe('the order of sending', () => {
  it('one device gets what it asks for at once, in order', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    schedule.ask('a', X, numbers(0, 5), false, 0)
    expect(drain(schedule, 0)).toEqual(['a0', 'a1', 'a2', 'a3', 'a4'])
    expect(schedule.waiting).toBe(0)
    // Asking for what is on its way is no new wish; saying that it did not come is one.
    schedule.ask('a', X, numbers(3, 7), false, 100)
    expect(drain(schedule, 100)).toEqual(['a5', 'a6'])
    schedule.ask('a', X, numbers(3, 7), true, 200)
    expect(drain(schedule, 400)).toEqual([])
    schedule.ask('a', X, numbers(3, 7), true, 4000)
    expect(drain(schedule, 4000)).toEqual(['a3', 'a4', 'a5', 'a6'])
  })

  it('the fast wait for the slow, and what all want is sent once', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    for (const device of ['a', 'b', 'c']) schedule.ask(device, X, numbers(0, 8), false, 0)
    expect(drain(schedule, 0)).toEqual(numbers(0, 8).map((n) => `a${n}`))
    schedule.ask('a', X, numbers(8, 16), false, 100)
    schedule.ask('b', X, numbers(8, 16), false, 200)
    expect(drain(schedule, 300)).toEqual([])
    schedule.ask('c', X, numbers(8, 16), false, 400)
    expect(drain(schedule, 400)).toEqual(numbers(8, 16).map((n) => `a${n}`))
  })

  it('but not for ever: one that never comes along is left to itself', () => {
    const schedule = new Schedule({ gatherMs: 1000 })
    let now = 0
    schedule.ask('slow', X, numbers(0, 2), false, now)
    schedule.ask('fast', X, numbers(0, 2), false, now)
    drain(schedule, now)
    const waits: number[] = []
    for (let from = 2; from < 20; from += 2) {
      schedule.ask('slow', X, [1], true, now)
      schedule.ask('fast', X, numbers(from, from + 2), false, now)
      const asked = now
      while (!drain(schedule, now).includes(`a${from}`)) now += 100
      waits.push(now - asked)
    }
    expect(waits.slice(0, 4)).toEqual([1000, 1000, 1000, 1000])
    expect(waits.slice(4)).toEqual([0, 0, 0, 0, 0])
  })

  it('the first of many that are there gets the head only, until the others come', () => {
    let present = 3
    const schedule = new Schedule({ gatherMs: 1000, present: () => present })
    schedule.ask('a', X, numbers(0, 12), false, 0)
    expect(drain(schedule, 0)).toEqual(numbers(0, 8).map((n) => `a${n}`))
    schedule.ask('b', X, numbers(0, 12), false, 300)
    schedule.ask('c', X, numbers(0, 12), false, 300)
    // What was asked for first goes first; each piece once.
    expect(drain(schedule, 300).sort()).toEqual(
      numbers(0, 12)
        .map((n) => `a${n}`)
        .sort(),
    )
    present = 1
    schedule.ask('d', Y, numbers(0, 12), false, 300)
    expect(drain(schedule, 300)).toHaveLength(12)
  })

  it('devices take turns, whatever they fetch and however much they ask for', () => {
    const schedule = new Schedule({ gatherMs: 0 })
    schedule.ask('greedy', X, numbers(0, 100), false, 0)
    schedule.ask('modest', Y, numbers(0, 3), false, 0)
    // Asking again is no way to the front.
    expect(drain(schedule, 0).slice(0, 6)).toEqual(['a0', 'b0', 'a1', 'b1', 'a2', 'b2'])
  })

  it('what is not wanted any more is not sent', () => {
    const schedule = new Schedule({ gatherMs: 0 })
    schedule.ask('a', X, numbers(0, 9), false, 0)
    schedule.ask('a', X, [], false, 0)
    schedule.ask('b', X, numbers(0, 9), false, 0)
    schedule.forget('b')
    schedule.ask('c', X, numbers(0, 9), false, 0)
    schedule.clear()
    expect(drain(schedule, 0)).toEqual([])
    schedule.ask('d', X, numbers(0, 9), false, 0)
    expect(drain(schedule, 61_000)).toEqual([])
  })
})
