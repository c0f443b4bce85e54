import fc from 'fast-check'
import { parse, safeParse } from 'valibot'
import { describe, expect, it } from 'vitest'
import type { ByteSource } from '../../base/source.ts'
import { type Policy, policySchema } from '../../bundle/agent-policy.ts'
import { type GateFacts, gate } from '../../device/policy/gate.ts'
import { limited } from '../../device/policy/limit.ts'
import { placeOf, pollPause, retryPause } from '../../device/policy/spread.ts'
import { defaultLinks, fits, judgePower, type SupplyFiles } from '../../device/policy/surroundings.ts'

const NOON = Date.parse('2026-06-05T12:00:00Z')
const FACTS: GateFacts = {
  wall: NOON,
  clockPlausible: true,
  offset: () => 0,
  links: ['eth0'],
  power: { mains: true, batteryPercent: undefined },
  place: 0.5,
  wantedSince: NOON,
}
const policy = (given: object): Policy => parse(policySchema, given)

describe('policies', () => {
  it('let everything go on by default', () => {
    for (const step of ['check', 'download', 'apply'] as const) expect(gate(step, policy({}), FACTS)).toBeUndefined()
  })

  it('are separate: each step waits for its own window', () => {
    const own = policy({ download: { windows: ['22:00-05:00'] }, apply: { windows: ['Sat 02:00-04:00'] } })
    expect(gate('check', own, FACTS)).toBeUndefined()
    expect(gate('download', own, FACTS)).toMatchObject({
      code: 'POLICY_WINDOW',
      until: Date.parse('2026-06-05T22:00:00Z'),
    })
    expect(gate('apply', own, FACTS)).toMatchObject({
      code: 'POLICY_WINDOW',
      until: Date.parse('2026-06-06T02:00:00Z'),
      message: 'apply waits for its window; the next opens at 2026-06-06T02:00:00.000Z',
    })
    expect(gate('download', own, { ...FACTS, wall: NOON + 11 * 3_600_000 })).toBeUndefined()
  })

  it('do not judge windows by a clock that cannot be right, except that asking is harmless', () => {
    const own = policy({ check: { windows: ['01:00-02:00'] }, download: { windows: ['00:00-24:00'] } })
    const facts = { ...FACTS, clockPlausible: false }
    expect(gate('check', own, facts)).toBeUndefined()
    expect(gate('download', own, facts)).toMatchObject({ code: 'POLICY_CLOCK', until: undefined })
  })

  it('spare metered links when they are the best route', () => {
    const own = policy({ download: { metered: 'refuse' } })
    expect(gate('download', own, { ...FACTS, links: ['wwan0'] })).toMatchObject({ code: 'POLICY_METERED' })
    expect(gate('download', own, { ...FACTS, links: ['eth0', 'wwan0'] })).toBeUndefined()
    expect(gate('check', own, { ...FACTS, links: ['wwan0'] })).toBeUndefined()
  })

  it('heed battery and mains', () => {
    const own = policy({ download: { minBatteryPercent: 30 }, apply: { mains: true } })
    const on = (mains: boolean, batteryPercent: number | undefined) => ({ ...FACTS, power: { mains, batteryPercent } })
    expect(gate('download', own, on(false, 29))).toMatchObject({ code: 'POLICY_POWER' })
    expect(gate('download', own, on(false, 30))).toBeUndefined()
    expect(gate('download', own, on(true, 5))).toBeUndefined()
    expect(gate('apply', own, on(false, 100))).toMatchObject({ code: 'POLICY_POWER' })
    expect(gate('apply', own, on(true, undefined))).toBeUndefined()
  })

  it('spread a fleet over the window, each device at its own place, all before it closes', () => {
    const own = policy({ download: { windows: ['10:00-14:00'], spreadSeconds: 7200 } })
    const opened = Date.parse('2026-06-05T10:00:00Z')
    const facts = { ...FACTS, wantedSince: opened - 1 }
    for (const place of [0, 0.25, 0.5, 0.999]) {
      const at = opened + place * 7_200_000
      expect(gate('download', own, { ...facts, place, wall: at })).toBeUndefined()
      if (place === 0) continue
      expect(gate('download', own, { ...facts, place, wall: at - 1 })).toMatchObject({
        code: 'POLICY_SPREAD',
        until: at,
      })
    }
    // Wanted late: half of what is left is used, so that nobody misses the window.
    const late = { ...facts, wantedSince: Date.parse('2026-06-05T13:00:00Z'), wall: Date.parse('2026-06-05T13:29:59Z') }
    expect(gate('download', own, { ...late, place: 0.999 })).toBeUndefined()
    expect(gate('download', own, { ...late, place: 0.999, wall: late.wantedSince + 60_000 })?.code).toBe(
      'POLICY_SPREAD',
    )
  })

  it('are read strictly', () => {
    for (const bad of [
      { download: { window: [] } },
      { check: { windows: ['22-23'] } },
      { timezone: 'Middle/Earth' },
      { download: { bytesPerSecond: 0 } },
      { apply: { metered: 'refuse' } },
    ])
      expect(safeParse(policySchema, bad).success, JSON.stringify(bad)).toBe(false)
  })
})

describe('surroundings', () => {
  const route = (rows: string) =>
    `Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n${rows}`
  it('find the default routes, best first', () => {
    const four = route(
      'wwan0\t00000000\t0102A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\neth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\neth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n',
    )
    expect(defaultLinks(four, '')).toEqual(['eth0', 'wwan0'])
    const zero = '0'.repeat(32)
    const six = `${zero} 00 ${zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 wwan1\n${zero} 00 ${zero} 00 ${zero} ffffffff 00000001 00000000 00200200 lo\n`
    expect(defaultLinks(route(''), six)).toEqual(['wwan1'])
    expect(defaultLinks('', '')).toEqual([])
    expect([fits('wwan0', 'wwan*'), fits('xwwan0', 'wwan*'), fits('eth.1', 'eth.*'), fits('eth11', 'eth.1')]).toEqual([
      true,
      false,
      true,
      false,
    ])
  })

  it('judge the power supply', () => {
    const supply = (given: Partial<SupplyFiles>): SupplyFiles => ({
      type: '',
      online: '',
      capacity: '',
      scope: '',
      ...given,
    })
    const battery = supply({ type: 'Battery\n', capacity: '41\n' })
    expect(judgePower([])).toEqual({ mains: true, batteryPercent: undefined })
    expect(judgePower([battery, supply({ type: 'Mains\n', online: '0\n' })])).toEqual({
      mains: false,
      batteryPercent: 41,
    })
    expect(judgePower([battery, supply({ type: 'USB\n', online: '1\n' })])).toEqual({ mains: true, batteryPercent: 41 })
    expect(judgePower([supply({ type: 'Battery', capacity: '9', scope: 'Device' })])).toEqual({
      mains: true,
      batteryPercent: undefined,
    })
    expect(judgePower([supply({ type: 'Battery', capacity: 'junk' })])).toEqual({
      mains: false,
      batteryPercent: undefined,
    })
  })
})

describe('places and pauses', () => {
  it('give every device a place of its own, evenly, and another for each purpose', () => {
    const counts = new Array<number>(20).fill(0)
    for (let n = 0; n < 10_000; n++) {
      const cell = Math.floor(placeOf(`device-${n}`, 'download') * 20)
      counts[cell] = (counts[cell] ?? 0) + 1
    }
    // 500 each; five standard deviations.
    expect(Math.max(...counts.map((count) => Math.abs(count - 500)))).toBeLessThan(110)
    expect(placeOf('a', 'download')).toBe(placeOf('a', 'download'))
    expect(placeOf('a', 'download')).not.toBe(placeOf('a', 'apply'))
  })

  it('stay between their bounds, whatever comes', () => {
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
    fc.assert(
      fc.property(
        fc.integer({ min: 1000, max: 604_800_000 }),
        fc.integer({ min: 1, max: 1e6 }),
        fc.boolean(),
        random,
        (interval, failures, passing, r) => {
          const retry = retryPause(interval, failures, passing, r)
          expect(retry).toBeGreaterThanOrEqual(Math.min(interval, 30_000) / 2)
          expect(retry).toBeLessThanOrEqual(passing ? Math.min(interval, 150_000) : interval)
          expect(Math.abs(pollPause(interval, r) - interval)).toBeLessThanOrEqual(interval * 0.1 + 1)
        },
      ),
    )
  })
})

/** A clock that jumps to whatever is waited for. */
function jumpingClock() {
  let now = 0
  return {
    now: () => now,
    sleep: async (ms: number, signal?: AbortSignal) => {
      signal?.throwIfAborted()
      now += ms
    },
    pass: (ms: number) => {
      now += ms
    },
  }
}

function sourceOf(size: number, piece: number, onPiece: () => void = () => undefined): ByteSource {
  return {
    name: 'memory',
    size,
    async *read(offset, length) {
      for (let at = offset; at < offset + length; at += piece) {
        onPiece()
        yield new Uint8Array(Math.min(piece, offset + length - at))
      }
    },
    close: async () => undefined,
  }
}

describe('the bandwidth limit', () => {
  for (const [rate, piece] of [
    [1024, 65_536],
    [20_000, 65_536],
    [1_000_000, 16_384],
    [10_000_000, 16_384],
  ] as const) {
    it(`of ${rate} bytes per second holds within a tenth over every 5 s, with pieces of ${piece}`, async () => {
      const clock = jumpingClock()
      const seconds = 20
      const arrivals: { at: number; bytes: number }[] = []
      let total = 0
      for await (const part of limited(sourceOf(rate * seconds, piece), rate, clock).read(0, rate * seconds)) {
        arrivals.push({ at: clock.now(), bytes: part.length })
        total += part.length
      }
      expect(total).toBe(rate * seconds)
      expect(Math.abs(clock.now() / 1000 - seconds)).toBeLessThan(seconds / 10)
      // Every span of 5 s that begins with an arrival, by two fingers.
      let end = 0
      let within = 0
      let worst = 0
      let least = Number.POSITIVE_INFINITY
      for (const { at, bytes } of arrivals) {
        while (end < arrivals.length && (arrivals[end]?.at ?? 0) < at + 5000) within += arrivals[end++]?.bytes ?? 0
        worst = Math.max(worst, within)
        if (end < arrivals.length) least = Math.min(least, within)
        within -= bytes
      }
      expect(worst / 5).toBeLessThanOrEqual(rate * 1.1)
      expect(least / 5).toBeGreaterThanOrEqual(rate * 0.9)
    })
  }

  it('does not save up what a slow link left over, and shares one limit among the reads of a source', async () => {
    const clock = jumpingClock()
    const slow = limited(
      sourceOf(4000, 1000, () => clock.pass(10_000)),
      1000,
      clock,
    )
    for await (const _ of slow.read(0, 4000)) {
      // A thousand bytes every 10 s.
    }
    // Each still takes its second, less the quarter that may be saved.
    expect(clock.now()).toBe(43_000)
    const before = clock.now()
    const quick = limited(sourceOf(100_000, 1000), 1000, clock)
    for (let n = 0; n < 10; n++) for await (const _ of quick.read(n * 1000, 1000)) void _
    expect(clock.now() - before).toBeGreaterThanOrEqual(9000)
  })

  it('ends its waits when it is stopped', async () => {
    const stop = new AbortController()
    const clock = jumpingClock()
    const read = limited(sourceOf(100_000, 1000), 1000, clock)
      .read(0, 100_000, { signal: stop.signal })
      [Symbol.asyncIterator]()
    await read.next()
    stop.abort(new Error('enough'))
    await expect(
      (async () => {
        for (;;) if ((await read.next()).done === true) return
      })(),
    ).rejects.toThrow('enough')
  })
})
