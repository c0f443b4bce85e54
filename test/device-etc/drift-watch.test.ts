import { describe, expect, it } from 'vitest'
import type { Core } from '../../device/agent/core.ts'
import { driftSeen, keepDrift, watchDrift } from '../../device/agent/drift-watch.ts'
import { stateReport } from '../../device/agent/session.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { World } from '../device-agent/world.ts'

// When drift is counted, at whose cost, and what is told of it.

const HOUR = 3_600_000

/** Runs the watch beside an agent that has nothing else to do. @param take what one count does */
async function watched(world: World, hours: number, take: (n: number, signal: AbortSignal) => Promise<number>) {
  const counts: number[] = []
  let at = 0
  await world.powerOn(hours * 3600, async (core) => {
    at = world.mono
    const stop = new AbortController()
    await watchDrift(core, stop.signal, async (asked, signal) => {
      counts.push(world.mono - at)
      const drift = { count: await take(counts.length, signal), owned: 1 }
      await keepDrift(asked, drift)
      return drift
    })
  })
  // At the end of a world everybody is woken once more.
  return counts.filter((ms) => ms < hours * HOUR - 1000)
}

const quiet = (hours = 1) => {
  const world = new World({ counter: 2 })
  world.agentConfig = { driftHours: hours }
  return world
}

describe('drift, counted by the agent', () => {
  it('some minutes after the start and then every so often, with the lowest claim, told by status and reports', async () => {
    const world = quiet()
    const claims: string[] = []
    const calm = async ({ nice, io }: { nice: number; io: string }) => {
      claims.push(`${nice} ${io}`)
      return async () => void claims.push('back')
    }
    world.surroundings = {
      links: async () => [],
      power: async () => ({ mains: true, batteryPercent: undefined }),
      calm,
    }
    const counts = await watched(world, 1.6, async (n) => 7 + n)
    expect(counts.map((ms) => Math.floor(ms / HOUR))).toEqual([0, 1])
    expect(counts[0]).toBeGreaterThanOrEqual(600_000)
    expect(claims.filter((claim) => claim !== 'back')).toEqual(expect.arrayContaining(['19 idle', '19 idle']))
    expect(claims.filter((claim) => claim === 'back').length * 2).toBe(claims.length)
    const core = world.core as Core
    const status = await statusOf(core)
    expect(status.drift).toMatchObject({ count: 9, owned: 1, release: '0.2' })
    expect(statusText(status)).toContain("drift  9 paths, 1 of them the device's own, at 2026-11-21T13")
    expect(stateReport(core).drift).toEqual({ at: status.drift?.at, count: 9, owned: 1 })
    // A command without an agent reads the same from the disk.
    expect(await driftSeen(core)).toEqual(status.drift)
  })

  it('not anew after a restart, unless another release runs', async () => {
    const world = quiet()
    await watched(world, 0.5, async () => 1)
    expect(await watched(world, 0.5, async () => 1)).toEqual([])
    const core = world.core as Core
    const other = { ...core.line, release: { epoch: 0, counter: 9 } }
    expect(await driftSeen({ ports: core.ports, line: other })).toBeUndefined()
  })

  it('gives way to other work at once, and tries again', async () => {
    const world = quiet()
    let given = 0
    const counts = await watched(world, 1, async (n, signal) => {
      if (n > 1) return 3
      const core = world.core as Core
      void core.exclusive('check', new AbortController().signal, () => world.sleep(60_000))
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
      given = world.mono
      throw signal.reason
    })
    expect(given).toBeGreaterThan(0)
    expect(counts).toHaveLength(2)
    expect((counts[1] ?? 0) - (counts[0] ?? 0)).toBeLessThan(HOUR)
  })

  it('gives up what takes too long, says why, and waits; never with 0', async () => {
    const world = quiet(24)
    const counts = await watched(world, 1, async (_, signal) => {
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
      throw signal.reason
    })
    expect(counts).toHaveLength(1)
    expect(world.lines).toContain('bistable: drift is not known: not counted within 900 s')
    expect(await watched(quiet(0), 0.5, async () => 1)).toEqual([])
  })
})
