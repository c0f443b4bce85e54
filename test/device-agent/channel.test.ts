import { describe, expect, it } from 'vitest'
import type { FreshnessStatement } from '../../bundle/freshness.ts'
import { channelName, decideUpdate, judgeFreshness } from '../../device/agent/channel.ts'
import { installFrom } from '../../device/agent/work.ts'
import { pollPause, retryPause } from '../../device/policy/spread.ts'
import { EMPTY_BODY } from '../../device/records/record.ts'
import { SHA } from '../bundle/fixture.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { key, signedRoot } from '../keys/helpers.ts'
import { World } from './world.ts'

const statement: FreshnessStatement = {
  type: 'freshness',
  product: 'demo',
  channel: 'stable',
  number: { epoch: 0, counter: 3 },
  release: SHA,
  path: 'bundles/3.bundle',
  size: 1000,
  rootVersion: 1,
  issued: '2026-11-21T00:00:00Z',
  expires: '2026-11-22T00:00:00Z',
}
const device = { product: 'demo', channel: 'stable' }
const at = (time: string, synchronised = true) => ({ wall: new Date(time), synchronised })
const judge = (change: Partial<FreshnessStatement>, clock: ReturnType<typeof at>, body = {}) =>
  codeOf(() => judgeFreshness({ ...statement, ...change }, body, device, clock))
const seen = {
  channel: 'stable',
  number: { epoch: 0, counter: 3 },
  digest: SHA,
  issued: '2026-11-21T06:00:00Z',
  expires: '2026-11-22T06:00:00Z',
  at: '2026-11-21T06:00:00Z',
  clock: 'synchronised' as const,
}

describe('freshness', () => {
  it('goes by a synchronised clock', () => {
    expect(judge({}, at('2026-11-21T12:00:00Z'))).toBe('accepted')
    expect(judge({}, at('2026-11-22T00:00:00Z'))).toBe('CHANNEL_EXPIRED')
    expect(judge({}, at('2026-11-19T00:00:00Z'))).toBe('CHANNEL_FUTURE')
    // Clocks of two machines differ a little.
    expect(judge({}, at('2026-11-20T23:00:00Z'))).toBe('accepted')
  })

  it('believes no clock that was not set, only the newest verified time', () => {
    for (const wrong of ['1970-01-01T00:00:00Z', '2106-02-07T00:00:00Z']) {
      expect(judge({}, at(wrong, false))).toBe('accepted')
      expect(judge({}, at(wrong, false), { verifiedTime: '2026-11-21T23:59:59Z' })).toBe('accepted')
      expect(judge({}, at(wrong, false), { verifiedTime: '2026-11-22T00:00:00Z' })).toBe('CHANNEL_EXPIRED')
    }
  })

  it('refuses an older file of the same channel, whatever the clock says', () => {
    for (const clock of [at('2026-11-21T12:00:00Z'), at('1970-01-01T00:00:00Z', false)]) {
      expect(judge({}, clock, { freshness: seen })).toBe('CHANNEL_REPLAYED')
      expect(judge({ issued: seen.issued }, clock, { freshness: seen })).toBe('accepted')
      expect(judge({}, clock, { freshness: { ...seen, channel: 'beta' } })).toBe('accepted')
    }
  })

  it('refuses another product, and another channel in the place of this one', () => {
    expect(judge({ product: 'other' }, at('2026-11-21T12:00:00Z'))).toBe('CHANNEL_WRONG')
    expect(judge({ channel: 'beta' }, at('2026-11-21T12:00:00Z'))).toBe('CHANNEL_WRONG')
    expect(channelName(new URL('http://x/y/channels/stable.json?token=1'))).toBe('stable')
  })
})

describe('what the newest release means', () => {
  const running = { slot: 'a', number: { epoch: 0, counter: 2 } } as const
  const facts = { digest: SHA, number: statement.number, version: '3', committed: true }
  const decide = (body: Partial<typeof EMPTY_BODY>) =>
    decideUpdate(statement, { ...EMPTY_BODY, ...body }, running).decision

  it('is decided by digest, block list and floor', () => {
    expect(decide({})).toBe('update')
    expect(decide({ slots: { a: facts } })).toBe('up-to-date')
    expect(decide({ slots: { b: facts } })).toBe('update')
    expect(decide({ blocked: [{ digest: SHA, reason: 'x', at: seen.at }] })).toBe('blocked')
    expect(decide({ installFloor: { epoch: 1, counter: 0 } })).toBe('older')
  })
})

describe('the channel, asked by the agent', () => {
  async function outcomeOf(prepare: (world: World) => Promise<void>): Promise<[World, string | undefined]> {
    const world = new World()
    await prepare(world)
    await world.powerOn(60)
    return [world, world.core?.body.outcomes.findLast((o) => o.what === 'check' || o.what === 'install')?.code]
  }

  it('says by code what is wrong with a file, and installs nothing', async () => {
    const past = '2026-11-20T00:00:00Z'
    const cases: [string, (world: World) => Promise<void>][] = [
      ['CHANNEL_EXPIRED', (w) => w.publish({ counter: 3 }, { issued: '2026-11-19T00:00:00Z', expires: past })],
      [
        'CHANNEL_FUTURE',
        (w) => w.publish({ counter: 3 }, { issued: '2027-11-19T00:00:00Z', expires: '2028-01-01T00:00:00Z' }),
      ],
      ['CHANNEL_WRONG', (w) => w.publish({ counter: 3 }, { product: 'other' })],
      ['CHANNEL_BUNDLE', (w) => w.publish({ counter: 3 }, { release: SHA })],
      ['RELEASE_WRONG_PRODUCT', (w) => w.publish({ counter: 3, product: 'other' })],
      ['SIGNATURE_UNKNOWN', (w) => w.publish({ counter: 3 }, {}, [22])],
      ['CHANNEL_UNSET', async () => undefined],
      [
        'ENVELOPE_INVALID',
        async (w) => {
          w.web.set('http://updates/channels/stable.json', Buffer.from('<html>please log in</html>'))
        },
      ],
    ]
    for (const [code, prepare] of cases) {
      const [world, found] = await outcomeOf(prepare)
      expect(found).toBe(code)
      expect(world.fetches, code).toBe(0)
      expect(world.boot, code).toMatchObject({ generation: 1 })
    }
  })

  it('refuses a replayed older file after a newer one was seen', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    await world.publish({ counter: 4 })
    await world.powerOn(60)
    await world.publish({ counter: 3 }, { issued: '2026-11-21T00:00:00Z', expires: '2026-12-21T00:00:00Z' })
    await world.powerOn(60)
    expect(world.core?.body.outcomes.at(-1)?.code).toBe('CHANNEL_REPLAYED')
    expect(world.core?.body.freshness?.number.counter).toBe(4)
  })

  it('follows published roots when the fleet key has changed, keeps them, and refuses the old key then', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    const next = { version: 2, root: [1], threshold: 1, fleet: [22] }
    world.web.set('http://updates/roots/2.json', await signedRoot(next, [1]))
    await world.publish({ counter: 3 }, {}, [22])
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(2)
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'check', ok: true })
    // After a restart, from the records alone.
    world.web.clear()
    await world.publish({ counter: 4 }, {}, [21])
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(2)
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'check', ok: false, code: 'SIGNATURE_THRESHOLD' })
  })

  it('A31 follows roots that the channel announces: what a revoked release key signs next is refused', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    // Only the release key is new: the channel verifies as before.
    const next = { version: 2, root: [1], threshold: 1, release: [12] }
    world.web.set('http://updates/roots/2.json', await signedRoot(next, [1]))
    await world.publish({ counter: 3 }, {})
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(1)
    await world.publish({ counter: 3 }, { rootVersion: 2 })
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(2)
    expect(world.core?.trusted.current.roles.release.keys).toEqual([key(12)])
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'check', ok: true })
  })

  it('takes no word of a file whose own key the roots that it announces have revoked', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'manual' }
    const next = { version: 2, root: [1], threshold: 1, fleet: [22] }
    world.web.set('http://updates/roots/2.json', await signedRoot(next, [1]))
    await world.publish({ counter: 3 }, { rootVersion: 2 }, [21])
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(2)
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'check', ok: false, code: 'SIGNATURE_THRESHOLD' })
    expect(world.core?.body.freshness).toBeUndefined()
  })

  it('roots that are announced and not there, or not roots, keep no news back', async () => {
    for (const found of [
      undefined,
      Buffer.from('<html>not found</html>'),
      await signedRoot({ version: 2, root: [4], threshold: 1 }, [4]),
    ]) {
      const world = new World()
      world.agentConfig = { ...world.agentConfig, apply: 'manual' }
      if (found !== undefined) world.web.set('http://updates/roots/2.json', found)
      await world.publish({ counter: 3 }, { rootVersion: 2 })
      await world.powerOn(60)
      expect(world.core?.trusted.current.version).toBe(1)
      expect(world.core?.body.outcomes.at(-1)).toMatchObject({ what: 'check', ok: true })
      expect(world.lines.join('\n').includes('root version 2 is announced and cannot be followed')).toBe(
        found !== undefined,
      )
    }
  })

  it('does not follow a root that the trusted one did not sign', async () => {
    const world = new World()
    world.web.set(
      'http://updates/roots/2.json',
      await signedRoot({ version: 2, root: [4], threshold: 1, fleet: [22] }, [4]),
    )
    await world.publish({ counter: 3 }, {}, [22])
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(1)
    expect(world.fetches).toBe(0)
  })

  it('names a stored root that was damaged, and goes on with the anchor of the image', async () => {
    const world = new World()
    world.web.set(
      'http://updates/roots/2.json',
      await signedRoot({ version: 2, root: [1], threshold: 1, fleet: [22] }, [1]),
    )
    await world.publish({ counter: 3 }, {}, [22])
    await world.powerOn(40)
    const { MemoryFiles } = await import('./memory-files.ts')
    world.files = new MemoryFiles(new Map(world.files.content).set('/data/records/roots/2.json', Buffer.from('junk')))
    await world.powerOn(5)
    expect(world.core?.problems).toEqual([])
    expect(world.core?.trusted.current.version).toBe(1)
    expect(world.lines.join('\n')).toContain('RECORD_ROOTS')
    // The anchor's keys alone, some of which root 2 revoked, do not count any more; the published chain repairs it.
    world.web.delete('http://updates/roots/2.json')
    const { fetches } = world
    await world.publish({ counter: 4 }, {}, [21])
    await world.powerOn(60)
    expect(world.core?.body.outcomes.at(-1)).toMatchObject({ code: 'RECORD_ROOTS' })
    expect(world.fetches).toBe(fetches)
  })
})

describe('polling', () => {
  it('backs off from short to the interval, with jitter, never beyond', () => {
    expect(pollPause(3_600_000, 0.5)).toBe(3_600_000)
    expect(pollPause(10_000, 0)).toBe(9_000)
    expect(retryPause(3_600_000, 1, false, 1)).toBe(30_000)
    expect(retryPause(3_600_000, 3, false, 1)).toBe(120_000)
    expect(retryPause(3_600_000, 1000, false, 1)).toBe(3_600_000)
    expect(retryPause(3_600_000, 1000, true, 1)).toBe(150_000)
    expect(retryPause(10_000, 5, true, 0)).toBe(5_000)
  })

  it('records a refusal that repeats at every poll once', async () => {
    const world = new World()
    await world.publish({ counter: 3, product: 'other' })
    await world.powerOn(3000)
    const codes = world.core?.body.outcomes.filter((o) => o.code === 'RELEASE_WRONG_PRODUCT')
    expect(codes?.length).toBeLessThanOrEqual(2)
    expect(
      await codeOfAsync(
        async () =>
          world.core &&
          installFrom(
            world.core,
            'http://updates/bundles/3.bundle',
            { force: true, onProgress: () => undefined },
            new AbortController().signal,
          ),
      ),
    ).toBe('RELEASE_WRONG_PRODUCT')
  })
})
