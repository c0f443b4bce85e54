import { writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { statusOf } from '../../device/agent/status.ts'
import { scratch } from '../bundle/tools.ts'
import { signedRoot } from '../keys/helpers.ts'
import { Device } from './device.ts'
import { forge } from './forge.ts'
import { attempt, refused } from './refused.ts'
import { announcing, freshness, PublishSite } from './web.ts'

// Channel files, roots and releases, true and false, against one device that keeps what it learns.

const anchor = await signedRoot({}, [1, 2])
const DAY = 86_400_000
const at = (ms: number) => new Date(ms).toISOString().replace(/\.\d+Z/, 'Z')
const NOON = Date.parse('2026-11-21T12:00:00Z')

async function online(plan: Parameters<typeof Device.make>[1] = {}) {
  const site = await PublishSite.open()
  const device = await Device.make(scratch(), { anchor, channel: site.channel, apply: 'install', ...plan })
  const offer = async (...args: Parameters<typeof freshness>) =>
    site.files.set('/channels/stable.json', await freshness(...args))
  return { site, device, offer }
}

/** A root chain from version 1 to `last`, each signed by the same root keys. */
async function chain(last: number, plan: (version: number) => Parameters<typeof signedRoot>[0]): Promise<Uint8Array[]> {
  const roots = [anchor]
  for (let version = 2; version <= last; version++) roots.push(await signedRoot({ ...plan(version), version }, [1, 2]))
  return roots
}

describe('the channel file', () => {
  it('A1 arbitrary software: signed by nobody who may, or signed for something else', async () => {
    const { device, offer, site } = await online()
    const before = await device.fingerprint()
    for (const by of [[99], [11], [1, 2], [21, 99]]) {
      await offer({}, by)
      refused(`signed by ${by}`, await attempt(() => device.poll()), 'SIGNATURE_UNKNOWN')
    }
    // A fleet-signed statement of another type in the place of the channel file; no signature at all; a web page.
    site.files.set('/channels/stable.json', anchor)
    refused('a root as channel file', await attempt(() => device.poll()), 'SIGNATURE_UNKNOWN', 'SIGNATURE_THRESHOLD')
    const good = Buffer.from(await freshness()).toString()
    for (const [what, text] of [
      ['no signatures', good.replace(/"signatures":.*/, '"signatures":[]}\n')],
      ['another payload', good.replace('"payload":"eyJ0', '"payload":"eyJ1')],
      ['another type', good.replace('freshness.v1', 'release.v1')],
      ['a page', '<!doctype html><title>log in</title>'],
    ] as const) {
      site.files.set('/channels/stable.json', Buffer.from(text))
      refused(what, await attempt(() => device.poll()))
    }
    expect(await device.fingerprint()).toBe(before)
  })

  it('A2 rollback of metadata: older channel files after a newer one, also when the agent has restarted', async () => {
    const { device, offer } = await online({ apply: 'manual' })
    const issued = (n: number) => ({ issued: at(NOON - 6 * 3_600_000 + n * 60_000), expires: at(NOON + DAY) })
    await offer(issued(5))
    await device.poll()
    const seen = device.core.body.freshness
    await device.restart()
    for (const n of [4, 3, 0]) {
      await offer(issued(n))
      refused(`channel file ${n} after 5`, await attempt(() => device.poll()), 'CHANNEL_REPLAYED')
      await device.restart()
      expect(device.core.body.freshness).toEqual(seen)
    }
  })

  it('A4 freeze: a statement served for longer than its life is noticed at the next poll, and nothing is installed', async () => {
    const { device, offer, site } = await online()
    const bundle = await forge()
    site.files.set('/bundles/7.bundle', bundle)
    await offer({ issued: at(NOON - DAY), expires: at(NOON + 3_600_000) })
    await attempt(() => device.poll())
    expect((await statusOf(device.core)).freshness?.fresh).toBe(true)
    const news = await announcing(bundle, anchor, 'bundles/7.bundle')
    await offer({ ...news, issued: at(NOON), expires: at(NOON + 7_200_000) })
    const before = await device.fingerprint()
    for (const hours of [2, 24, 24 * 365]) {
      device.clock.wall = new Date(NOON + hours * 3_600_000)
      refused(`served for ${hours} hours`, await attempt(() => device.poll()), 'CHANNEL_EXPIRED')
      expect((await statusOf(device.core)).freshness?.fresh).toBe(false)
    }
    expect(await device.fingerprint()).toBe(before)
  })

  it('A29 clocks: 1970, 2106 and jumps open nothing and brick nothing', async () => {
    const { device, offer, site } = await online({ apply: 'manual' })
    await offer({ issued: at(NOON - 3_600_000), expires: at(NOON + DAY) })
    await device.poll()
    for (const [wall, synchronised] of [
      ['1970-01-01T00:00:00Z', false],
      ['2106-02-07T06:28:16Z', false],
    ] as const) {
      Object.assign(device.clock, { wall: new Date(wall), synchronised })
      // A clock that nobody set is not believed: the newest verified time counts, so old statements stay old …
      await offer({ issued: at(NOON - 30 * DAY), expires: at(NOON - 29 * DAY) })
      refused(`expired, clock ${wall}`, await attempt(() => device.poll()), 'CHANNEL_REPLAYED', 'CHANNEL_EXPIRED')
      // … and good ones good.
      await offer({ issued: at(NOON - 3_600_000), expires: at(NOON + DAY) })
      expect(await attempt(() => device.poll())).toBe('accepted')
    }
    // Even a synchronised clock that is wrong passes: nothing learnt then stays wrong.
    Object.assign(device.clock, { wall: new Date('2106-02-07T06:28:16Z'), synchronised: true })
    refused('2106, believed', await attempt(() => device.poll()), 'CHANNEL_EXPIRED')
    Object.assign(device.clock, { wall: new Date('1970-01-01T00:00:00Z') })
    refused('1970, believed', await attempt(() => device.poll()), 'CHANNEL_FUTURE')
    // Releases themselves do not expire, and their floors do not depend on a clock.
    site.files.set(
      '/bundles/old',
      await forge({ release: { number: { epoch: 0, counter: 2 }, securityFloor: { epoch: 0, counter: 0 } } }),
    )
    refused(
      'an old release in 1970',
      await attempt(() => device.install(`${site.origin}/bundles/old`)),
      'RELEASE_BELOW_FLOOR',
    )
    Object.assign(device.clock, { wall: new Date(NOON) })
    expect(await attempt(() => device.poll())).toBe('accepted')
  })
})

describe('roots', () => {
  it('A30 offline across rotations: one bundle leads over forty roots; a gap or a weak link does not', async () => {
    const folder = scratch()
    const rotating = (version: number) => ({ root: [1, 2, 3], release: [40 + version], fleet: [100 + version] })
    const roots = await chain(40, rotating)
    const device = await Device.make(folder, { anchor })
    const path = `${folder}/x.bundle`
    const write = async (plan: Parameters<typeof forge>[0]) => {
      writeFileSync(path, await forge(plan))
    }
    const without = roots.filter((_, i) => i !== 20)
    await write({ roots: without, by: [80], release: { rootVersion: 40 } })
    refused('a gap at 21', await attempt(() => device.install(path)))
    const weak = [...roots]
    weak[20] = await signedRoot({ ...rotating(21), version: 21, root: [7, 8, 9] }, [7, 8])
    await write({ roots: weak, by: [80], release: { rootVersion: 40 } })
    refused('a link that the old keys did not sign', await attempt(() => device.install(path)), 'SIGNATURE_THRESHOLD')
    expect(device.core.trusted.current.version).toBe(1)
    await write({ roots, by: [80], release: { rootVersion: 40 } })
    expect(await attempt(() => device.install(path))).toBe('accepted')
    expect(device.core.trusted.current.version).toBe(40)
    await device.restart()
    expect(device.core.trusted.current.version).toBe(40)
  })

  it('A31 revoked key offline: after one newer stick, an older one by the revoked key is refused', async () => {
    const folder = scratch()
    const device = await Device.make(folder, { anchor })
    const old = `${folder}/old.bundle`
    writeFileSync(old, await forge({ release: { number: { epoch: 0, counter: 9 } } }))
    const next = `${folder}/next.bundle`
    writeFileSync(
      next,
      await forge({
        roots: await chain(2, () => ({ release: [12] })),
        by: [12],
        release: { hardware: ['other-board'] },
      }),
    )
    // Not even for this board: it teaches the roots all the same.
    refused('a release for another board', await attempt(() => device.install(next)), 'RELEASE_WRONG_HARDWARE')
    for (const restart of [false, true]) {
      if (restart) await device.restart()
      refused('by the revoked key', await attempt(() => device.install(old)), 'SIGNATURE_THRESHOLD')
      refused('by the revoked key, forced', await attempt(() => device.install(old, true)), 'SIGNATURE_THRESHOLD')
    }
    expect(await device.bootState()).toMatchObject({ trial: undefined })
  })

  it('A2 rollback of metadata: an older chain of roots takes nothing back', async () => {
    const folder = scratch()
    const device = await Device.make(folder, { anchor })
    const roots = await chain(3, (version) => ({ release: [10 + version] }))
    const path = `${folder}/x.bundle`
    writeFileSync(path, await forge({ roots, by: [13], release: { hardware: ['other-board'] } }))
    await attempt(() => device.install(path))
    expect(device.core.trusted.current.version).toBe(3)
    for (const length of [2, 1]) {
      await device.restart()
      writeFileSync(path, await forge({ roots: roots.slice(0, length), by: [10 + length] }))
      refused(
        `roots 1 to ${length} after 3`,
        await attempt(() => device.install(path)),
        'SIGNATURE_THRESHOLD',
        'SIGNATURE_UNKNOWN',
      )
      expect(device.core.trusted.current.version).toBe(3)
    }
  })

  it('A25 missing key means no check: without its trust anchor a device installs nothing', async () => {
    const folder = scratch()
    for (const [what, bytes] of [
      ['empty', Buffer.alloc(0)],
      ['cut', anchor.subarray(0, 200)],
      ['a page', Buffer.from('<html>')],
      [
        'unsigned',
        Buffer.from(
          Buffer.from(anchor)
            .toString()
            .replace(/"signatures":.*/, '"signatures":[]}\n'),
        ),
      ],
    ] as const)
      refused(`the anchor is ${what}`, await attempt(() => Device.make(`${folder}/${what}`, { anchor: bytes })))
  })
})

describe('stolen keys', () => {
  it('A8 fast-forward: what a stolen online key said about the far future ends with its rotation', async () => {
    const { device, offer, site } = await online({ apply: 'manual', synchronised: false })
    await offer({
      number: { epoch: 0, counter: Number.MAX_SAFE_INTEGER },
      issued: '2999-01-01T00:00:00Z',
      expires: '2999-12-01T00:00:00Z',
    })
    await device.poll()
    await offer({ issued: at(NOON), expires: at(NOON + DAY) })
    refused('an honest file while the stolen key counts', await attempt(() => device.poll()), 'CHANNEL_REPLAYED')
    site.files.set('/roots/2.json', await signedRoot({ version: 2, fleet: [22] }, [1, 2]))
    await offer({ issued: at(NOON), expires: at(NOON + DAY) }, [22])
    expect(await attempt(() => device.poll())).toBe('accepted')
    expect(device.core.body.freshness?.number.counter).toBe(7)
    await device.restart()
    await offer({ issued: '2999-02-01T00:00:00Z', expires: '2999-12-01T00:00:00Z' })
    refused('the stolen key again', await attempt(() => device.poll()), 'SIGNATURE_THRESHOLD')
    // The floors of images never go back, whoever signs.
    site.files.set(
      '/bundles/old',
      await forge({
        roots: [anchor, site.files.get('/roots/2.json') as Uint8Array],
        release: { number: { epoch: 0, counter: 4 }, securityFloor: { epoch: 0, counter: 0 } },
      }),
    )
    refused(
      'an image under the floor',
      await attempt(() => device.install(`${site.origin}/bundles/old`)),
      'RELEASE_BELOW_FLOOR',
    )
  })

  it('A13 release key stolen: burnt counters are bounded, and a new epoch leads back to the honest line', async () => {
    const folder = scratch()
    const device = await Device.make(folder, { anchor })
    const install = async (plan: Parameters<typeof forge>[0]) => {
      writeFileSync(`${folder}/x.bundle`, await forge(plan))
      return await attempt(() => device.install(`${folder}/x.bundle`))
    }
    const number = (epoch: number, counter: number) => ({
      number: { epoch, counter },
      securityFloor: { epoch: 0, counter: 0 },
    })
    for (const counter of [10_006, 2 ** 31, 2 ** 32 + 5, Number.MAX_SAFE_INTEGER])
      refused(`counter ${counter}`, await install({ release: number(0, counter) }), 'RELEASE_TOO_FAR_AHEAD')
    refused('an epoch of its own', await install({ release: number(1, 1) }), 'BUNDLE_EPOCH')
    // What it can do, and what ends it.
    expect(await install({ release: number(0, 10_005) })).toBe('accepted')
    await device.core.update((body) => ({
      ...body,
      state: { name: 'idle' },
      installFloor: { epoch: 0, counter: 10_005 },
    }))
    await device.reset()
    const roots = await chain(2, () => ({ epoch: 1, release: [12] }))
    expect(await install({ roots, by: [12], release: { ...number(1, 1), rootVersion: 2 } })).toBe('accepted')
    await device.core.update((body) => ({ ...body, state: { name: 'idle' }, installFloor: { epoch: 1, counter: 1 } }))
    await device.reset()
    refused('the old line', await install({ roots, by: [11], release: number(0, 20_000) }), 'SIGNATURE_THRESHOLD')
    refused(
      'the old line, honest key',
      await install({ roots, by: [12], release: number(0, 20_000) }),
      'RELEASE_BELOW_FLOOR',
    )
  })
})
