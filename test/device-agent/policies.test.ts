import { describe, expect, it } from 'vitest'
import { HOOK_STEPS } from '../../device/agent/hooks.ts'
import { operate } from '../../device/agent/operations.ts'
import { statusOf } from '../../device/agent/status.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from './world.ts'

// What the agent does by itself, and when: the real loop over a clock in memory.

const never = new AbortController().signal
const HOUR = 3_600_000
const hook = (name: string) => `/usr/lib/bistable/hooks.d/${name}`

/** A device at noon UTC whose channel has release 3. */
async function worldWith(policy: object, apply = 'reboot'): Promise<World> {
  const world = new World()
  world.agentConfig = { ...world.agentConfig, apply, pollSeconds: 600, policy: { timezone: 'UTC', ...policy } }
  await world.publish({ counter: 3 })
  return world
}
const state = (world: World) => world.core?.body.state.name
const codes = (world: World) => world.core?.body.outcomes.filter((o) => !o.ok).map((o) => o.code)

describe('maintenance windows', () => {
  it('hold the download until theirs opens, and say so in status', async () => {
    const world = await worldWith({ download: { windows: ['14:00-15:00'] } })
    await world.powerOn(7000)
    expect(world.fetches).toBe(0)
    if (world.core === undefined) throw new Error('no core')
    const status = await statusOf(world.core)
    expect(status.waiting).toEqual({
      code: 'POLICY_WINDOW',
      message: 'download waits for its window; the next opens at 2026-11-21T14:00:00.000Z',
      until: '2026-11-21T14:00:00.000Z',
    })
    expect(world.lines.filter((line) => line.includes('POLICY_WINDOW'))).toHaveLength(1)
    // Still the same power-on's clock: started again at 13:56, it does not oversleep the opening.
    await world.powerOn(1000)
    expect(state(world)).toBe('armed')
    expect(new Date(world.wall).toISOString()).toMatch(/^2026-11-21T14:0[01]/)
  })

  it('stop a download that outlasts its window; what has arrived is kept and the outcome says why', async () => {
    const world = await worldWith({ download: { windows: ['11:00-12:30'] } })
    // A link so slow that every third takes an hour.
    world.onFill = (signal) => world.sleep(HOUR, signal)
    world.agentConfig = { ...world.agentConfig, stallSeconds: 86_400 }
    await world.powerOn(5000)
    expect(state(world)).toBe('idle')
    expect(codes(world)).toEqual(['POLICY_WINDOW'])
    expect(world.core?.activity.waiting?.code).toBe('POLICY_WINDOW')
  })

  it('let a release be fetched and verified, and arm it in a window of its own', async () => {
    const world = await worldWith({ apply: { windows: ['14:00-15:00'] } })
    await world.powerOn(6000)
    expect(state(world)).toBe('idle')
    expect(world.core?.body.slots.b).toMatchObject({ number: { counter: 3 }, committed: false })
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'install', ok: true })
    expect(world.core?.body.outcomes.at(-1)?.message).toContain('verified; apply waits for its window')
    expect(world.boot?.trial).toBeUndefined()
    // Not fetched again at every poll.
    expect(world.fetches).toBe(3)
    await world.powerOn(3000)
    expect([state(world), world.rebootAsked]).toEqual(['armed', true])
    await world.powerOn(1000)
    expect(state(world)).toBe('committed')
  })

  it('are not judged by a clock that is behind what is known to have passed', async () => {
    const world = await worldWith({ download: { windows: ['00:00-24:00'] } })
    world.synchronised = false
    world.wall = 0
    await world.powerOn(3000)
    expect([world.fetches, world.core?.activity.waiting?.code]).toEqual([0, 'POLICY_CLOCK'])
    // A clock that runs from a battery is believed, synchronised or not.
    world.wall = Date.parse('2026-11-21T13:00:00Z')
    await world.powerOn(3000)
    expect(state(world)).toBe('armed')
  })

  it('do not bind a person', async () => {
    const world = await worldWith({ download: { windows: ['01:00-02:00'] }, apply: { windows: ['01:00-02:00'] } })
    await world.powerOn(100, async (core) => {
      await operate(core, 'install', { source: 'http://updates/bundles/3.bundle' }, () => undefined, never)
    })
    expect(state(world)).toBe('armed')
    expect(world.rebootAsked).toBe(false)
  })
})

describe('link, power and place', () => {
  it('are waited for, each under its own code', async () => {
    const world = await worldWith({
      download: { metered: 'refuse', mains: true, spreadSeconds: 3600 },
      apply: { minBatteryPercent: 50 },
    })
    // Its place is at 87 % of the hour.
    world.deviceId = 'device-3'
    const here = { links: ['wwan0'], power: { mains: false, batteryPercent: 20 } }
    world.surroundings = {
      links: async () => here.links,
      power: async () => here.power,
      calm: async () => async () => undefined,
    }
    const waits = async () => {
      await world.powerOn(700)
      return world.core?.activity.waiting?.code
    }
    expect(await waits()).toBe('POLICY_METERED')
    here.links = ['eth0', 'wwan0']
    expect(await waits()).toBe('POLICY_POWER')
    here.power = { mains: true, batteryPercent: 20 }
    expect(await waits()).toBe('POLICY_SPREAD')
    await world.powerOn(4000)
    expect(state(world)).toBe('armed')
  })

  it('a download stops when the cable is pulled and the modem takes over', async () => {
    const world = await worldWith({ download: { metered: 'refuse' } })
    const links = ['eth0']
    world.surroundings = {
      links: async () => links,
      power: async () => ({ mains: true, batteryPercent: undefined }),
      calm: async () => async () => undefined,
    }
    world.onFill = (signal) => {
      links[0] = 'wwan0'
      return world.sleep(HOUR, signal)
    }
    await world.powerOn(1000)
    expect([state(world), codes(world)]).toEqual(['idle', ['POLICY_METERED']])
  })

  it('processor and disk are given back after an install, also after one that failed', async () => {
    const calls: string[] = []
    const world = await worldWith({ download: { nice: 10, io: 'idle' } })
    world.surroundings = {
      links: async () => [],
      power: async () => ({ mains: true, batteryPercent: undefined }),
      calm: async ({ nice, io }) => {
        calls.push(`${nice} ${io}`)
        return async () => void calls.push('back')
      },
    }
    let fails = true
    world.onFill = async () => {
      if (fails) {
        fails = false
        throw new Error('once')
      }
    }
    await world.powerOn(1000)
    expect(calls).toEqual(['10 idle', 'back', '10 idle', 'back'])
  })
})

describe('hooks', () => {
  it('run before and after each step, in order, and are told what it is about', async () => {
    const world = await worldWith({})
    for (const step of HOOK_STEPS)
      for (const when of ['pre', 'post']) world.hooks.set(hook(`${when}-${step}/10-x`), () => ({}))
    world.hooks.set('/etc/bistable/hooks.d/pre-check/05-device', () => ({}))
    await world.powerOn(200)
    await world.powerOn(200)
    const ran = world.hookRuns.map(({ hook: path }) => path.split('/').slice(-2).join('/'))
    const once = ['pre-check/10-x', 'pre-check/05-device', 'post-check/10-x', 'pre-download/10-x', 'pre-install/10-x']
    const then = ['pre-arm/10-x', 'post-download/10-x', 'post-install/10-x', 'post-arm/10-x', 'pre-reboot/10-x']
    const tried = ['pre-commit/10-x', 'post-commit/10-x']
    expect(ran.slice(0, 12)).toEqual([...once, ...then, ...tried])
    const facts = { BISTABLE_RELEASE: '0.3', BISTABLE_VERSION: '1.3', BISTABLE_SLOT: 'b' }
    expect(world.hookRuns.find(({ hook: path }) => path.includes('pre-arm'))?.env).toEqual({
      BISTABLE_STEP: 'arm',
      ...facts,
    })
    expect(state(world)).toBe('committed')
  })

  it('a failing one before a step refuses it, with a code and its own words; the next attempt asks again', async () => {
    for (const step of ['check', 'download', 'install', 'arm', 'reboot'] as const) {
      const world = await worldWith({})
      let answer: { exit: number; said: string } = { exit: 3, said: 'door is open\n' }
      world.hooks.set(hook(`pre-${step}/10-door`), () => answer)
      await world.powerOn(500)
      expect(codes(world), step).toContain('HOOK_REFUSED')
      const words = world.core?.body.outcomes.find((o) => o.code === 'HOOK_REFUSED')?.message
      expect(words).toBe(`${step}: ${hook(`pre-${step}/10-door`)}: exit 3: door is open`)
      expect(world.rebootAsked).toBe(false)
      expect(world.boot?.trial, step).toBe(step === 'reboot' ? 'b' : undefined)
      answer = { exit: 0, said: '' }
      await world.powerOn(2000)
      if (step === 'reboot') expect(state(world)).toBe('committed')
      else expect(world.rebootAsked, step).toBe(true)
    }
  })

  it('one that hangs is ended with its time, and a post hook that fails changes nothing', async () => {
    const world = await worldWith({ hookSeconds: 20 })
    world.hooks.set(hook('pre-download/10-hangs'), () => 'hangs')
    world.hooks.set(hook('post-check/10-broken'), () => ({ exit: 1, said: 'no paper' }))
    await world.powerOn(300)
    expect(codes(world)).toEqual(['HOOK_FAILED', 'HOOK_TIMEOUT'])
    world.hooks.delete(hook('pre-download/10-hangs'))
    await world.powerOn(3000)
    expect(state(world)).toBe('armed')
    expect(codes(world)).toEqual(['HOOK_FAILED', 'HOOK_TIMEOUT'])
  })

  it('before a commit refuses the try like a health check, and the device falls back', async () => {
    const world = await worldWith({})
    world.hooks.set(hook('pre-commit/10-self-test'), () => ({ exit: 1, said: 'pump is dry' }))
    await world.run()
    expect([state(world), world.boots.at(-1)]).toEqual(['fallen-back', 'a'])
    expect(codes(world)).toContain('HOOK_REFUSED')
  })

  it('before a commit has its time, however late the checks passed', async () => {
    const world = new World()
    await world.publish({ counter: 3, health: (n) => ({ exit: n < 25 ? 1 : 0 }) })
    await world.powerOn()
    world.hooks.set('/etc/bistable/hooks.d/pre-commit/slow', () => ({}))
    const ports = world.ports.bind(world)
    world.ports = async (...args) => {
      const made = await ports(...args)
      const run: typeof made.processes.run = async (command, ...rest) => {
        if (command[0].endsWith('/slow')) await world.sleep(55_000)
        return made.processes.run(command, ...rest)
      }
      return { ...made, processes: { ...made.processes, run } }
    }
    await world.powerOn(300)
    expect([world.boots, world.core?.body.state.name]).toEqual([['a', 'b?'], 'committed'])
  })

  it('in the middle of an install may take their time, which is no stall', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, stallSeconds: 30, apply: 'install' }
    world.hooks.set('/etc/bistable/hooks.d/pre-arm/slow', () => ({}))
    const ports = world.ports.bind(world)
    world.ports = async (...args) => {
      const made = await ports(...args)
      const run: typeof made.processes.run = async (command, ...rest) => {
        if (command[0].endsWith('/slow')) await world.sleep(50_000)
        return made.processes.run(command, ...rest)
      }
      return { ...made, processes: { ...made.processes, run } }
    }
    await world.publish({ counter: 3 })
    await world.powerOn(300)
    expect(world.core?.body.outcomes.filter(({ ok }) => !ok)).toEqual([])
    expect(world.core?.body.state.name).toBe('armed')
  })

  it('a person meets them too', async () => {
    const world = await worldWith({}, 'install')
    world.hooks.set(hook('pre-reboot/10-busy'), () => ({ exit: 1 }))
    world.hooks.set(hook('pre-rollback/10-busy'), () => ({ exit: 1 }))
    await world.powerOn(300, async () => undefined)
    const { core } = world
    if (core === undefined) throw new Error('no core')
    expect(await codeOfAsync(() => operate(core, 'reboot', {}, () => undefined, never))).toBe('HOOK_REFUSED')
    expect(world.rebootAsked).toBe(false)
  })
})

describe('being woken', () => {
  it('checks at once, once for many calls, and a storm at most every five seconds', async () => {
    const world = await worldWith({}, 'manual')
    world.agentConfig = { ...world.agentConfig, pollSeconds: 86_400 }
    let checks = 0
    world.hooks.set(hook('pre-check/10-count'), () => {
      checks++
      return {}
    })
    await world.powerOn(200, async (core) => {
      await world.sleep(100_000)
      const before = checks
      for (let n = 0; n < 1000; n++) core.activity.wake()
      await world.sleep(1)
      expect(checks).toBe(before + 1)
      for (let n = 0; n < 300; n++) {
        core.activity.wake()
        await world.sleep(100)
      }
      expect(checks).toBeLessThanOrEqual(before + 8)
      expect(checks).toBeGreaterThanOrEqual(before + 6)
    })
    expect(world.lines.filter((line) => line.startsWith('during:'))).toEqual([])
  })
})
