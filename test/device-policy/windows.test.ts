import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Offset, parseWindow, type Window, windowState, zoneOffset } from '../../device/policy/windows.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

/** Zones that jump in every way there is: one hour, half an hour, in the south, at midnight, never, behind UTC. */
const ZONES = [
  'UTC',
  'Europe/Berlin',
  'America/New_York',
  'Australia/Lord_Howe',
  'America/Santiago',
  'Asia/Kolkata',
  'Asia/Beirut',
  'Pacific/Auckland',
]
const offsets = new Map(ZONES.map((zone) => [zone, quarters(zoneOffset(zone))]))
/** Clocks jump on quarters of an hour: one question each. */
function quarters(offset: Offset): Offset {
  const known = new Map<number, number>()
  return (instant) => {
    const quarter = Math.floor(instant / 900_000)
    const found = known.get(quarter) ?? offset(quarter * 900_000)
    known.set(quarter, found)
    return found
  }
}
function offsetOf(zone: string) {
  const found = offsets.get(zone)
  if (found === undefined) throw new Error(zone)
  return found
}

function at(zone: string, windows: readonly string[], instant: string) {
  return windowState(windows.map(parsed), Date.parse(instant), offsetOf(zone))
}
function parsed(text: string): Window {
  const found = parseWindow(text)
  if (found === undefined) throw new Error(text)
  return found
}
const iso = (instant: number | undefined) => (instant === undefined ? undefined : new Date(instant).toISOString())

describe('windows', () => {
  it('are read strictly', () => {
    expect(parseWindow('22:00-05:00')).toEqual({ days: [0, 1, 2, 3, 4, 5, 6], start: 1320, end: 300 })
    expect(parseWindow('Mon-Fri 22:00-24:00')).toEqual({ days: [1, 2, 3, 4, 5], start: 1320, end: 1440 })
    expect(parseWindow('Fri-Mon,Wed 00:00-00:00')).toEqual({ days: [0, 1, 3, 5, 6], start: 0, end: 1440 })
    for (const bad of [
      '',
      '22:00',
      '24:00-05:00',
      '22:60-05:00',
      'Xyz 22:00-05:00',
      'Mon-Tue-Wed 01:00-02:00',
      '1:00-2:00',
    ])
      expect(parseWindow(bad), bad).toBeUndefined()
  })

  it('open and close by local time, over midnight and over days', () => {
    const berlin = (text: string) => at('Europe/Berlin', ['Mon-Fri 22:00-05:00'], text)
    expect(berlin('2026-06-05T19:59:59Z')).toMatchObject({ open: false, since: Date.parse('2026-06-05T20:00:00Z') })
    expect(berlin('2026-06-05T20:00:00Z')).toMatchObject({ open: true, until: Date.parse('2026-06-06T03:00:00Z') })
    // Friday's goes on into Saturday; Saturday has none of its own.
    expect(berlin('2026-06-06T02:59:59Z').open).toBe(true)
    expect(iso(berlin('2026-06-06T03:00:00Z').since)).toBe('2026-06-08T20:00:00.000Z')
    expect(at('UTC', [], '2026-06-06T03:00:00Z')).toEqual({ open: true, since: undefined, until: undefined })
    expect(at('UTC', ['00:00-24:00'], '2026-06-06T03:00:00Z')).toMatchObject({ open: true, until: undefined })
    const weekend = at('UTC', ['Sat,Sun 00:00-24:00'], '2026-06-06T03:00:00Z')
    expect([iso(weekend.since), iso(weekend.until)]).toEqual(['2026-06-06T00:00:00.000Z', '2026-06-08T00:00:00.000Z'])
  })

  it('open on the day on which local time skips them, and hold both of what comes twice', () => {
    // 29 March 2026, 02:00 to 03:00 do not exist in Berlin.
    const spring = at('Europe/Berlin', ['02:10-02:50'], '2026-03-29T00:00:00Z')
    expect([iso(spring.since), iso(spring.until)]).toEqual(['2026-03-29T01:00:00.000Z', '2026-03-29T01:40:00.000Z'])
    expect(at('Europe/Berlin', ['02:10-02:50'], '2026-03-29T01:20:00Z').open).toBe(true)
    // 25 October 2026, 02:00 to 03:00 come twice.
    const autumn = at('Europe/Berlin', ['02:00-02:30'], '2026-10-25T00:15:00Z')
    expect([autumn.open, iso(autumn.until)]).toEqual([true, '2026-10-25T01:30:00.000Z'])
    // In Santiago the day itself begins at 01:00.
    const santiago = at('America/Santiago', ['00:00-00:30'], '2026-09-06T03:00:00Z')
    expect([iso(santiago.since), iso(santiago.until)]).toEqual(['2026-09-06T04:00:00.000Z', '2026-09-06T04:30:00.000Z'])
  })
})

const arbWindow = fc
  .record({
    days: fc.uniqueArray(fc.integer({ min: 0, max: 6 }), { minLength: 1, maxLength: 7 }),
    start: fc.integer({ min: 0, max: 1439 }),
    end: fc.integer({ min: 1, max: 1440 }),
  })
  .filter(({ start, end }) => start !== end)
const arbInstant = fc.integer({
  min: Date.parse('2024-01-01T00:00:00Z') / MINUTE,
  max: Date.parse('2034-01-01T00:00:00Z') / MINUTE,
})
const arbZone = fc.constantFrom(...ZONES)

describe('windows, by property', () => {
  it('agree with the wall clock wherever it does not jump', () => {
    fc.assert(
      fc.property(arbZone, fc.array(arbWindow, { minLength: 1, maxLength: 3 }), arbInstant, (zone, windows, minute) => {
        const offset = offsetOf(zone)
        const instant = minute * MINUTE
        const here = offset(instant)
        fc.pre([-3, -2, -1, 1, 2].every((days) => offset(instant + days * DAY) === here))
        const local = new Date(instant + here * MINUTE)
        const time = local.getUTCHours() * 60 + local.getUTCMinutes()
        const today = local.getUTCDay()
        const expected = windows.some(({ days, start, end }) => {
          if (start < end) return days.includes(today) && start <= time && time < end
          return (days.includes(today) && start <= time) || (days.includes((today + 6) % 7) && time < end)
        })
        expect(windowState(windows, instant, offset).open).toBe(expected)
      }),
      { numRuns: 400 },
    )
  })

  it('tell when they change: open exactly until then, closed exactly before', () => {
    fc.assert(
      fc.property(
        arbZone,
        arbWindow,
        arbInstant,
        fc.double({ min: 0, max: 1, noNaN: true }),
        (zone, window, minute, part) => {
          const offset = offsetOf(zone)
          const instant = minute * MINUTE
          const state = windowState([window], instant, offset)
          const change = state.open ? state.until : state.since
          if (change === undefined) return expect(state.open).toBe(true)
          expect(change).toBeGreaterThan(instant)
          expect(windowState([window], change, offset).open).toBe(!state.open)
          const between = instant + Math.floor((change - 1 - instant) * part)
          expect(windowState([window], between, offset).open).toBe(state.open)
        },
      ),
      { numRuns: 400 },
    )
  })

  it('open on every one of their days, also where local time jumps, and never for no time', () => {
    for (const zone of ZONES) {
      const offset = offsetOf(zone)
      // Every day of a year, windows inside and around the hours at which clocks jump.
      for (const [start, end] of [
        [0, 30],
        [45, 75],
        [120, 150],
        [130, 170],
        [150, 195],
        [110, 125],
      ] as const) {
        let instant = Date.parse('2026-01-01T20:00:00Z')
        const last = Date.parse('2027-01-01T20:00:00Z')
        let opened = 0
        while (instant < last) {
          const state = windowState([{ days: [0, 1, 2, 3, 4, 5, 6], start, end }], instant, offset)
          expect(state.open).toBe(false)
          if ((state.since ?? last) >= last) break
          const length = (state.until ?? 0) - (state.since ?? 0)
          const jump = Math.abs(offset(instant) - offset((state.until ?? 0) + HOUR)) * MINUTE
          expect(length, `${zone} ${iso(instant)}`).toBeGreaterThan(0)
          expect(Math.abs(length - (end - start) * MINUTE)).toBeLessThanOrEqual(jump)
          opened++
          instant = state.until ?? last
        }
        expect(opened, zone).toBe(365)
      }
    }
  })
})
