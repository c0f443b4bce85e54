import { describe, expect, it } from 'vitest'
import { ASSIGNMENT_PAYLOAD_TYPE } from '../../bundle/assignment.ts'
import { FRESHNESS_PAYLOAD_TYPE } from '../../bundle/freshness.ts'
import { RELEASE_PAYLOAD_TYPE } from '../../bundle/types.ts'
import { encodeRoot, ROOT_PAYLOAD_TYPE } from '../../keys/root.ts'
import { ASSIGNMENT, fleetSigned, type Plan } from '../bundle/fixture.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { rootOf, signedRoot } from '../keys/helpers.ts'
import { Device } from './device.ts'
import { forge } from './forge.ts'
import { attempt, refused } from './refused.ts'
import { announcing, freshness, PublishSite, signedBy } from './web.ts'

// Whoever holds the fleet key owns the publish directory too: here they are one attacker.

const anchor = await signedRoot({}, [1, 2])
const ZERO = { epoch: 0, counter: 0 }
const number = (counter: number) => ({ number: { epoch: 0, counter }, securityFloor: ZERO })

async function victim(apply: 'manual' | 'install' = 'install') {
  const site = await PublishSite.open()
  const device = await Device.make(scratch(), { anchor, channel: site.channel, apply })
  const start = await device.fingerprint()
  /** The code of the refusal; NOTHING_INSTALLED when the agent looked at it and left it. */
  const outcome = async (work: () => Promise<unknown>): Promise<string> => {
    const code = await attempt(work)
    if (code !== 'accepted') return code
    return (await device.fingerprint()) === start ? 'NOTHING_INSTALLED' : 'accepted'
  }
  return { site, device, start, outcome }
}

/** The fleet key's word about a bundle, in a channel file. */
async function announce(site: PublishSite, bundle: Uint8Array, of: Plan, by: readonly number[] = [21]): Promise<void> {
  // What a bundle says of itself, when no release key signed it.
  const honest = await forge({ ...of, by: [11] })
  const news = await announcing(honest, anchor, 'bundles/x.bundle')
  site.files.set('/bundles/x.bundle', bundle)
  site.files.set('/channels/stable.json', await freshness({ ...news, size: bundle.length }, by))
}

const SIGNATURE = ['SIGNATURE_UNKNOWN', 'SIGNATURE_THRESHOLD']
const OLD = ['RELEASE_BELOW_FLOOR', 'NOTHING_INSTALLED']
/** What is offered, what a release key signed of it, how it is forged, and the codes that it may meet. */
const ONLY_FLEET: readonly [string, Plan, Plan, readonly string[]][] = [
  ['a release that only the fleet key signed', {}, { by: [21] }, SIGNATURE],
  ['a release that nobody signed with a key of a root', {}, { by: [99] }, SIGNATURE],
  ['a release for another board', { release: { hardware: ['other-board'] } }, {}, ['RELEASE_WRONG_HARDWARE']],
  ['a release below the install floor', { release: number(4) }, {}, OLD],
  ['a release below the security floor', { release: number(2) }, {}, OLD],
  ['a release far ahead', { release: number(20_000) }, {}, ['RELEASE_TOO_FAR_AHEAD']],
]

describe('A14 online key stolen', () => {
  it.each(ONLY_FLEET)('announced in the channel: %s', async (what, of, forgery, codes) => {
    const { site, device, start, outcome } = await victim()
    await announce(site, await forge({ ...of, ...forgery }), of)
    refused(what, await outcome(() => device.poll()), ...codes)
    expect(await device.fingerprint()).toBe(start)
    expect(await device.bootState()).toMatchObject({ trial: undefined })
  })

  it.each(ONLY_FLEET)('assigned to this device, in the bundle and beside it: %s', async (what, of, forgery, codes) => {
    for (const allowDowngrade of [false, true]) {
      if (allowDowngrade && what.includes('install floor')) continue
      const { site, device, start, outcome } = await victim()
      const change = { ...number((of.release?.number ?? { counter: 7 }).counter), allowDowngrade }
      const { securityFloor: _, ...named } = change
      const bundle = await forge({ ...of, ...forgery, assignment: fleetSigned([21], named) })
      site.files.set('/bundles/x.bundle', bundle)
      refused(`${what}, carried`, await outcome(() => device.install(`${site.origin}/bundles/x.bundle`)), ...codes)
      const bare = await forge({ ...of, ...forgery })
      site.files.set('/bundles/x.bundle', bare)
      const news = await announcing(await forge({ ...of, by: [11] }), anchor, 'bundles/x.bundle')
      const assignment = {
        ...ASSIGNMENT,
        sequence: 2,
        number: news.number,
        release: news.release,
        bundle: { path: news.path, size: bare.length },
        allowDowngrade,
      }
      site.files.set('/assignments/device-1.json', await signedBy(ASSIGNMENT_PAYLOAD_TYPE, assignment, [21]))
      site.files.set('/channels/stable.json', await freshness())
      refused(`${what}, beside`, await outcome(() => device.poll()), ...codes)
      expect(await device.fingerprint()).toBe(start)
    }
  })

  it('every type of statement, by the fleet key, in every place where one is read', async () => {
    const { site, device, start, outcome } = await victim()
    const root2 = rootOf({ version: 2, root: [21, 22], release: [23], fleet: [24], threshold: 1 })
    const statements: [string, Uint8Array][] = [
      ['a root', await signedBy(ROOT_PAYLOAD_TYPE, encodeRoot(root2), [21])],
      ['a release', await signedBy(RELEASE_PAYLOAD_TYPE, { type: 'release' }, [21])],
      ['an assignment', await signedBy(ASSIGNMENT_PAYLOAD_TYPE, { ...ASSIGNMENT, release: 'ab'.repeat(32) }, [21])],
      ['a channel file', await freshness()],
      ['a type of its own', await signedBy('application/x', { type: 'root' }, [21])],
    ]
    const parts: [string, (bytes: Uint8Array) => Promise<unknown>, string][] = [
      ['as channel file', async (bytes) => site.files.set('/channels/stable.json', bytes), 'a channel file'],
      ['as assignment', async (bytes) => site.files.set('/assignments/device-1.json', bytes), 'an assignment'],
      ['as the next root', async (bytes) => site.files.set('/roots/2.json', bytes), ''],
    ]
    for (const [place, put, honest] of parts)
      for (const [what, bytes] of statements) {
        if (what === honest) continue
        site.files.clear()
        // A key that no root lists makes the agent look for newer roots.
        site.files.set('/channels/stable.json', await freshness({}, [24]))
        await put(bytes)
        refused(`${what} ${place}`, await outcome(() => device.poll()))
      }
    const inBundles: [string, Plan][] = [
      ['a root by the fleet key in the chain', { roots: [anchor, statements[0]?.[1] ?? anchor], by: [23] }],
      ['a release by the fleet key', { by: [21] }],
      ['an assignment by the release key', { assignment: fleetSigned([11]) }],
      ['an assignment by a stranger', { assignment: fleetSigned([99]) }],
      ['an assignment of another release', { assignment: async () => statements[2]?.[1] ?? anchor }],
      ['a channel file as assignment', { assignment: async () => statements[3]?.[1] ?? anchor }],
    ]
    for (const [what, plan] of inBundles) {
      site.files.set('/bundles/x.bundle', await forge(plan))
      refused(what, await outcome(() => device.install(`${site.origin}/bundles/x.bundle`)))
    }
    expect(await device.fingerprint()).toBe(start)
    expect(device.core.trusted.current.version).toBe(1)
  })

  it('a channel file that points elsewhere, lies about its bundle, or is no channel file', async () => {
    const { site, device, start, outcome } = await victim()
    const bundle = await forge()
    const news = await announcing(bundle, anchor, 'bundles/x.bundle')
    site.files.set('/bundles/x.bundle', bundle)
    const base = { type: 'freshness', product: 'demo', channel: 'stable', ...news, rootVersion: 1 }
    const times = { issued: '2026-11-21T00:00:00Z', expires: '2026-11-22T00:00:00Z' }
    const paths = [
      '../x',
      '/etc/passwd',
      'http://127.0.0.1:9/x',
      '//127.0.0.1:9/x',
      'a/../../x',
      'a b',
      '.x',
      'x\ny',
      '%2e%2e/x',
    ]
    const lies: [string, Record<string, unknown>][] = [
      ...paths.map((path): [string, Record<string, unknown>] => [`path ${path}`, { path }]),
      ['another release', { release: 'ab'.repeat(32) }],
      ['another product', { product: 'other' }],
      ['another channel', { channel: 'beta' }],
      ['no size', { size: 0 }],
      ['a number as text', { number: '0.9' }],
      ['no end', { expires: '2026-11-21T00:00:00Z' }],
      ['a time that is none', { issued: '2026-02-30T00:00:00Z' }],
    ]
    for (const [what, lie] of lies) {
      const statement = await signedBy(FRESHNESS_PAYLOAD_TYPE, { ...base, ...times, ...lie }, [21])
      site.files.set('/channels/stable.json', statement)
      refused(what, await outcome(() => device.poll()))
    }
    expect(await device.fingerprint()).toBe(start)
  })

  it('what it can do: choose among good releases, and go back as far as the security floor', async () => {
    const { site, device } = await victim()
    const down = { rootfs: noise(30 * 4096, 'older'), release: number(4) }
    const carried = fleetSigned([21], { number: { epoch: 0, counter: 4 }, allowDowngrade: true })
    site.files.set('/bundles/x.bundle', await forge({ ...down, assignment: carried }))
    expect(await attempt(() => device.install(`${site.origin}/bundles/x.bundle`))).toBe('accepted')
    expect(device.core.body).toMatchObject({ installFloor: { counter: 5 }, securityFloor: { counter: 3 } })
  })
})

describe('assignments', () => {
  async function carried(change: Parameters<typeof fleetSigned>[1]): Promise<Uint8Array> {
    return forge({ assignment: fleetSigned([21], { number: { epoch: 0, counter: 7 }, ...change }) })
  }

  it('A18 replay across devices: an assignment for another device is refused', async () => {
    const { site, device, start, outcome } = await victim()
    for (const other of ['device-2', 'Device-1', 'device-10', 'device']) {
      site.files.set('/bundles/x.bundle', await carried({ device: other }))
      refused(other, await outcome(() => device.install(`${site.origin}/bundles/x.bundle`)), 'ASSIGNMENT_OTHER_DEVICE')
      const beside = await signedBy(
        ASSIGNMENT_PAYLOAD_TYPE,
        { ...ASSIGNMENT, device: other, release: 'ab'.repeat(32) },
        [21],
      )
      site.files.set('/assignments/device-1.json', beside)
      site.files.set('/channels/stable.json', await freshness())
      refused(`${other}, beside`, await outcome(() => device.poll()), 'ASSIGNMENT_OTHER_DEVICE')
    }
    expect(await device.fingerprint()).toBe(start)
  })

  it('A19 replay on the same device: an accepted assignment is refused after a newer one, also after a restart', async () => {
    const { site, device } = await victim('manual')
    site.files.set('/channels/stable.json', await freshness())
    const put = async (sequence: number, more: Record<string, unknown> = {}) => {
      const assignment = { ...ASSIGNMENT, release: 'ab'.repeat(32), sequence, ...more }
      site.files.set('/assignments/device-1.json', await signedBy(ASSIGNMENT_PAYLOAD_TYPE, assignment, [21]))
    }
    for (const sequence of [3, 5]) {
      await put(sequence)
      expect(await attempt(() => device.poll())).toBe('accepted')
    }
    for (const sequence of [3, 4, 1]) {
      await put(sequence)
      refused(`sequence ${sequence} after 5`, await attempt(() => device.poll()), 'ASSIGNMENT_REPLAYED')
      await device.restart()
      refused(`sequence ${sequence} after a restart`, await attempt(() => device.poll()), 'ASSIGNMENT_REPLAYED')
    }
    await put(5, { release: 'cd'.repeat(32) })
    refused('another one of sequence 5', await attempt(() => device.poll()), 'ASSIGNMENT_REPLAYED')
    expect(device.core.body.assignment).toMatchObject({ sequence: 5, release: 'ab'.repeat(32) })
  })
})
