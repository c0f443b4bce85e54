import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { samePath } from '../../device/agent/mirrors.ts'
import { readReach } from '../../device/agent/reach.ts'
import { pathsUnder, readConfig } from '../../device/config.ts'
import { Device } from '../attacks/device.ts'
import { forge } from '../attacks/forge.ts'
import { attempt } from '../attacks/refused.ts'
import { announcing, freshness, PublishSite } from '../attacks/web.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { makePki } from '../doors/nginx.ts'
import { signedRoot } from '../keys/helpers.ts'

const anchor = await signedRoot({}, [1, 2])

/** A publish folder with one release, and a device that follows it with two mirrors. */
async function world() {
  const sites = [await PublishSite.open(), await PublishSite.open(), await PublishSite.open()] as const
  const bundle = await forge()
  const channel = await freshness(await announcing(bundle, anchor, 'bundles/7.bundle'))
  for (const site of sites) {
    site.files.set('/channels/stable.json', channel)
    site.files.set('/bundles/7.bundle', bundle)
  }
  const [first, second, third] = sites
  const device = await Device.make(scratch(), {
    anchor,
    channel: first.channel,
    mirrors: [second.channel, third.channel],
    apply: 'install',
  })
  return { sites, device, bundle }
}

describe('mirrors', () => {
  it('A17 a channel that is gone, is a page, is foreign or is stale: the next place is asked', async () => {
    const { sites, device } = await world()
    const [first, second] = sites
    first.files.set('/channels/stable.json', Buffer.from('<html>sign in</html>'))
    second.files.set('/channels/stable.json', await freshness({}, [99]))
    expect(await attempt(() => device.poll())).toBe('accepted')
    expect(device.said.filter((line) => line.includes('the next mirror is asked')).join('\n')).toMatch(
      /TRANSPORT_WRONG_ANSWER(.|\n)*SIGNATURE_/,
    )
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    const stale = await world()
    const old = await freshness({ issued: '2026-10-01T00:00:00Z', expires: '2026-10-02T00:00:00Z' })
    stale.sites[0].files.set('/channels/stable.json', old)
    expect(await attempt(() => stale.device.poll())).toBe('accepted')
    expect(stale.device.said.join('\n')).toContain('CHANNEL_EXPIRED')
  })

  it('A17 a bundle that is missing, damaged or another one: the next place serves, and what came is kept', async () => {
    const { sites, device, bundle } = await world()
    const damaged = Buffer.from(bundle)
    const at = damaged.indexOf('data/rootfs\0') + 512 + 100_000
    damaged[at] = (damaged[at] ?? 0) ^ 1
    sites[0].files.set('/bundles/7.bundle', damaged)
    sites[1].files.delete('/bundles/7.bundle')
    expect(await attempt(() => device.poll())).toBe('accepted')
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(device.core.body.outcomes.map(({ what, code }) => `${what} ${code ?? 'ok'}`)).toEqual([
      'check ok',
      'install BUNDLE_DIGEST',
      'install TRANSPORT_MISSING',
      'install ok',
    ])
    // The boot image had come from the first place; the damaged chunk is all of the other image.
    expect(device.core.body.outcomes.at(-1)?.fetched).toBe(30 * 4096)
  })

  it('says the first refusal when no place is good, and asks no other for what no place can change', async () => {
    const { sites, device } = await world()
    sites[0].files.set('/channels/stable.json', noise(500))
    for (const site of sites.slice(1)) site.files.clear()
    const code = await attempt(() => device.poll())
    expect(code).toMatch(/^(DSSE|ENVELOPE|SIGNATURE|STATEMENT)_/)
    const board = await Device.make(scratch(), {
      anchor,
      channel: sites[0].channel,
      mirrors: [sites[1].channel],
      apply: 'install',
      hardware: 'another-board',
    })
    const bundle = await forge()
    sites[0].files.set('/channels/stable.json', await freshness(await announcing(bundle, anchor, 'bundles/7.bundle')))
    sites[0].files.set('/bundles/7.bundle', bundle)
    expect(await attempt(() => board.poll())).toBe('RELEASE_WRONG_HARDWARE')
    expect(board.said.join('\n')).not.toContain('next mirror')
  })

  it('the same path under every place', () => {
    const places = ['https://a/site/channels/stable.json', 'http://b:8080/channels/stable.json']
    expect(samePath('https://a/site/bundles/7.bundle', places)).toEqual([
      'https://a/site/bundles/7.bundle',
      'http://b:8080/bundles/7.bundle',
    ])
    expect(samePath('http://b:8080/x', places)).toEqual(['http://b:8080/x', 'https://a/site/x'])
    expect(samePath('http://c/x', places)).toEqual(['http://c/x'])
  })
})

describe('settings of the way out', () => {
  it('reads PEM files at each use, and names the one that cannot be used', async () => {
    const folder = scratch()
    const pki = makePki(folder)
    const at = (name: string) => join(folder, name)
    const env = { http_proxy: 'http://p:1' }
    expect(await readReach(undefined, nodeFiles, env)).toEqual({ env })
    const tls = { ca: at('ca.crt'), cert: at('client.crt'), key: at('client.key') }
    expect(await readReach(tls, nodeFiles, env)).toEqual({ env, tls: { ca: pki.ca, ...pki.client } })
    expect(await codeOfAsync(() => readReach({ ca: at('none') }, nodeFiles, env))).toBe('TRANSPORT_TLS')
    writeFileSync(at('large'), Buffer.alloc(600 * 1024))
    await expect(readReach({ ca: at('large') }, nodeFiles, env)).rejects.toThrow(/tls\.ca, .*large/)
  })

  it('refuses a certificate without its key, and mirrors that are no addresses', async () => {
    const root = scratch()
    const paths = pathsUnder(root)
    const system = { product: 'demo', hardware: ['x'] }
    const configure = async (agent: object) => {
      mkdirSync(join(root, 'usr/lib/bistable'), { recursive: true })
      writeFileSync(paths.system, JSON.stringify({ ...system, agent }))
      return (await readConfig(paths, nodeFiles)).agent
    }
    expect((await configure({})).mirrors).toEqual([])
    expect(await codeOfAsync(() => configure({ tls: { cert: '/etc/c.pem' } }))).toBe('CONFIG_INVALID')
    expect(await codeOfAsync(() => configure({ mirrors: ['ftp://x/y'] }))).toBe('CONFIG_INVALID')
    expect(await configure({ mirrors: ['http://m/channels/a.json'], tls: { ca: '/etc/ca.pem' } })).toMatchObject({
      mirrors: ['http://m/channels/a.json'],
      tls: { ca: '/etc/ca.pem' },
    })
  })
})
