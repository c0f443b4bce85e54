import { describe, expect, it } from 'vitest'
import { freshState, onBoot } from '../../bootloader/machine.ts'
import { rollBackNow } from '../../device/agent/roll-back.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { codeOfAsync } from '../codes.ts'
import { digestOf, World } from './world.ts'

const CHANNEL = 'http://updates/channels/stable.json'
const lastCheck = (world: World) => world.core?.body.outcomes.findLast((o) => o.what === 'check')

describe('floors', () => {
  it('rise after a commit only: not when installed, armed, tried or given up', async () => {
    const seen: string[] = []
    const world = new World({ counter: 2 })
    const floors = () => `${world.core?.body.installFloor.counter}/${world.core?.body.securityFloor.counter}`
    await world.publish({ counter: 3, securityFloor: 3, health: () => ({ exit: 1 }) })
    await world.powerOn()
    seen.push(floors())
    await world.powerOn(10)
    seen.push(floors())
    await world.run()
    seen.push(floors())
    expect(world.core?.body.state.name).toBe('fallen-back')
    expect(seen).toEqual(['2/0', '2/0', '2/0'])
    await world.publish({ counter: 4, securityFloor: 4 })
    await world.run()
    expect(floors()).toBe('4/4')
    // They never fall, whatever is committed later.
    await world.publish({ counter: 5, securityFloor: 1 })
    await world.run()
    expect(floors()).toBe('5/4')
  })

  it('do not rise in a boot that found no boot state: what came up last may have been on trial', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 3, securityFloor: 3, health: () => ({ exit: 1 }) })
    await world.powerOn()
    await world.powerOn(10)
    world.boot = undefined
    await world.powerOn(10)
    expect(world.boots).toEqual(['a', 'b?', 'b'])
    expect(world.core?.body).toMatchObject({ installFloor: { counter: 2 }, securityFloor: { counter: 0 } })
    // With the floor above the old release, neither slot would start after this.
    await world.run()
    expect(world.boots.at(-1)).toBe('a')
    expect(world.core?.body).toMatchObject({ securityFloor: { counter: 0 } })
  })

  it('do not rise by what is started only because the kernel of the primary cannot be loaded', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 3, securityFloor: 3, health: () => ({ exit: 1 }) })
    await world.run()
    const ports = world.ports.bind(world)
    // Release 3 fell back, and is all that GRUB can load now.
    world.ports = (_, release) =>
      ports(
        'bistable.floor=0.3 bistable.slot=b bistable.release=0.3 bistable.boot=fallback bistable.left=0 bistable.why=image-unreadable',
        release,
      )
    await world.powerOn(5)
    expect(world.core?.body).toMatchObject({ installFloor: { counter: 2 }, securityFloor: { counter: 0 } })
  })

  it('a spare that the security floor has passed is no spare any more; one at the floor stays', async () => {
    for (const [floor, spare] of [
      [2, true],
      [3, false],
    ] as const) {
      const world = new World({ counter: 2 })
      await world.publish({ counter: 3, securityFloor: floor })
      await world.run()
      expect(world.boot).toMatchObject({ primary: 'b', spare })
      // So a primary that does not come up is not left for a slot that the initramfs would refuse.
      const broken = onBoot(world.boot, {
        starts: { a: 0, b: 9, up: 'b' },
        writable: true,
        loadable: { a: true, b: true },
      })
      expect(broken.slot).toBe(spare ? 'a' : 'b')
      let code = ''
      await world.powerOn(1, async (core) => {
        code = await codeOfAsync(() => rollBackNow(core))
      })
      expect(code).toBe(spare ? 'accepted' : 'ROLLBACK_FLOOR')
    }
  })

  it('a spare is retired at the next start where the floor rose without it', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 3, securityFloor: 3 })
    await world.run()
    // As after a cut between the record of the commit and the write that retires.
    if (world.boot !== undefined) world.boot = { ...world.boot, spare: true }
    await world.powerOn(5)
    expect(world.boot).toMatchObject({ primary: 'b', spare: false })
  })
})

describe('a torn copy of the boot state', () => {
  it('is written anew when the agent starts, also in a try, and changes nothing else', async () => {
    const world = new World({ counter: 2 })
    world.agentConfig = {}
    world.torn = true
    await world.powerOn(5)
    expect(world.torn).toBe(false)
    expect(world.boot).toEqual({ ...freshState('a'), generation: 2 })
    const { changes } = world
    await world.powerOn(5)
    expect(world.boot?.generation).toBe(2)
    expect(world.changes - changes).toBeLessThanOrEqual(1)

    const trying = new World({ counter: 2 })
    await trying.publish({ counter: 3, health: () => 'hangs' })
    await trying.powerOn()
    trying.torn = true
    await trying.powerOn(5)
    expect(trying.torn).toBe(false)
    expect(trying.boot).toMatchObject({ trial: 'b', left: 2 })
  })

  it('that cannot be healed is said once, and the agent goes on', async () => {
    const world = new World({ counter: 2 })
    world.agentConfig = {}
    const ports = world.ports.bind(world)
    world.ports = async (...args) => {
      const made = await ports(...args)
      const write = async () => {
        throw new Error('medium is worn out')
      }
      return { ...made, boot: { ...made.boot, torn: async () => true, write } }
    }
    for (let n = 0; n < 3; n++) await world.powerOn(5)
    expect(world.core?.body.outcomes.filter((o) => o.message.includes('worn out'))).toHaveLength(1)
  })
})

describe('freeze (A4)', () => {
  it('a valid statement served past its life: stale within one poll, nothing is installed, the device runs on', async () => {
    const world = new World({ counter: 2 })
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    await world.publish({ counter: 3 }, { expires: '2026-11-21T13:00:00Z' })
    const frozen = world.web.get(CHANNEL)
    const stale: [time: string, fresh: boolean | null | undefined, code: string | undefined][] = []
    const status = async () => {
      const now = world.core === undefined ? undefined : await statusOf(world.core)
      stale.push([new Date(world.wall).toISOString().slice(0, 16), now?.freshness?.fresh, lastCheck(world)?.code])
    }
    await world.powerOn(60)
    await status()
    world.agentConfig = { ...world.agentConfig, apply: 'reboot' }
    world.wall = Date.parse('2026-11-21T13:00:00Z')
    await world.powerOn(110)
    await status()
    expect(stale).toEqual([
      ['2026-11-21T12:01', true, undefined],
      ['2026-11-21T13:01', false, 'CHANNEL_EXPIRED'],
    ])
    expect(world.core === undefined ? '' : statusText(await statusOf(world.core))).toContain('freshness stale')
    expect([world.fetches, world.boot?.generation]).toEqual([0, 1])
    expect(world.web.get(CHANNEL)).toBe(frozen)
    // The fleet speaks again: nothing of the refusal stays.
    await world.publish({ counter: 3 })
    await world.run()
    expect(world.core?.body.state.name).toBe('committed')
  })

  it('a server that says nothing is stale too; without a clock nobody can say', async () => {
    const world = new World({ counter: 3 })
    await world.publish({ counter: 3 }, { expires: '2026-11-21T13:00:00Z' })
    await world.powerOn(60)
    world.web.clear()
    world.wall = Date.parse('2026-11-22T00:00:00Z')
    const fresh = async () => (world.core === undefined ? 'none' : (await statusOf(world.core)).freshness?.fresh)
    expect(await fresh()).toBe(false)
    world.synchronised = false
    expect(await fresh()).toBeNull()
    expect(world.core === undefined ? '' : statusText(await statusOf(world.core))).toContain('unknown')
  })
})

describe('the clock (A29)', () => {
  it('at 1970, at 2106, or jumping: what it makes expire is good again when it is right, and floors stand', async () => {
    for (const wrong of ['1970-01-01T00:00:00Z', '2106-02-07T06:28:15Z'])
      for (const synchronised of [true, false]) {
        const world = new World({ counter: 2 })
        await world.publish({ counter: 3, securityFloor: 2 })
        const right = world.wall
        world.wall = Date.parse(wrong)
        world.synchronised = synchronised
        await world.powerOn(60)
        const code = wrong.startsWith('1970') ? 'CHANNEL_FUTURE' : 'CHANNEL_EXPIRED'
        // Not believed: the statement's own time is all there is to know, and it is fresh by that.
        expect([wrong, synchronised, lastCheck(world)?.code]).toEqual([
          wrong,
          synchronised,
          synchronised ? code : undefined,
        ])
        expect(world.core?.body.verifiedTime ?? 'none').not.toContain('2106')
        world.wall = right + 60_000
        world.synchronised = true
        await world.run()
        expect(world.core?.body).toMatchObject({ state: { name: 'committed' }, installFloor: { counter: 3 } })
      }
  })

  it('jumping to and fro while it installs: the install ends as it would have', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 3 })
    const right = world.wall
    let jumps = 0
    world.onFill = async () => {
      world.wall = jumps++ % 2 === 0 ? 0 : Date.parse('2106-02-07T06:28:15Z')
    }
    await world.powerOn()
    world.onFill = async () => undefined
    world.wall = right + 120_000
    await world.run()
    expect(jumps).toBeGreaterThan(1)
    expect(world.core?.body).toMatchObject({ state: { name: 'committed', job: { digest: digestOf({ counter: 3 }) } } })
  })

  it('set back, it does not make an expired statement fresh again', async () => {
    const world = new World({ counter: 2 })
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    await world.publish({ counter: 2 }, { issued: '2026-11-21T13:00:00Z' })
    await world.powerOn(60)
    // The clock says noon. Another channel's word, which was verified, said that one o'clock was past.
    await world.publish(
      { counter: 3 },
      { channel: 'beta', issued: '2026-11-21T11:00:00Z', expires: '2026-11-21T12:30:00Z' },
    )
    world.wall = Date.parse('2026-11-21T12:00:00Z')
    const beta = CHANNEL.replace('stable', 'beta')
    const bytes = world.web.get(CHANNEL)
    if (bytes !== undefined) world.web.set(beta, bytes)
    world.agentConfig = { ...world.agentConfig, channel: beta, apply: 'reboot' }
    await world.powerOn(60)
    expect(lastCheck(world)?.code).toBe('CHANNEL_EXPIRED')
    expect(world.fetches).toBe(0)
  })
})
