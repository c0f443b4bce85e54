import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { sha256 } from '../../bundle/digest.ts'
import type { AnnouncedDelta } from '../../bundle/freshness.ts'
import { slotFolder, storeSlot } from '../../device/agent/slot-files.ts'
import { publish } from '../../publisher/publish.ts'
import { Device, NEVER } from '../attacks/device.ts'
import { PublishSite } from '../attacks/web.ts'
import { signer } from '../keys/helpers.ts'
import { type Made, release } from './kit.ts'

// The whole way: published with a patch, found in the channel by a device that runs the release before, fetched over HTTP.

let dir: string
let site: string
let first: Made
let second: Made
let named: AnnouncedDelta | undefined

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-delta-agent-'))
  first = await release(dir, 1, { counter: 5 })
  second = await release(dir, 2, { counter: 6 })
  site = join(dir, 'site')
  const request = { to: site, channel: 'stable', signers: [signer(21)], validSeconds: 86_400, deltas: 1 }
  const now = Date.parse('2026-11-21T10:00:00Z')
  await publish({ ...request, bundles: [first.bundle.path], now }, { say: () => undefined })
  named = (await publish({ ...request, bundles: [second.bundle.path], now: now + 1000 }, { say: () => undefined }))
    .deltas?.[0]
  return async () => {
    await first.source.close()
    await second.source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

/** The publish folder on a server, and a device that runs `first` and installs by itself. */
async function world(name: string) {
  const web = await PublishSite.open()
  for (const folder of ['channels', 'bundles', 'deltas', 'roots'])
    for (const file of readdirSync(join(site, folder)))
      web.files.set(`/${folder}/${file}`, readFileSync(join(site, folder, file)))
  const root = join(dir, name)
  mkdirSync(root)
  const device = await Device.make(root, { channel: web.channel, apply: 'install', slotBytes: 4096 * 900 })
  const data = join(root, 'data/bistable')
  await storeSlot(nodeFiles, slotFolder(data, 'a'), first.head, first.source, NEVER)
  for (const image of ['boot', 'rootfs'] as const) {
    const path = join(root, `disk/${image}-a`)
    const bytes = readFileSync(path)
    bytes.set(first.bundle[image])
    writeFileSync(path, bytes)
  }
  await device.restart()
  return { web, device, held: () => readFileSync(join(root, 'disk/rootfs-b')).subarray(0, second.bundle.rootfs.length) }
}

describe('an agent that follows a channel with patches', () => {
  it('fetches the patch from its own release instead of chunks', async () => {
    const { device, held, web } = await world('good')
    await device.poll()
    expect(device.said.filter((line) => line.includes('DELTA_'))).toEqual([])
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(held().equals(second.bundle.rootfs)).toBe(true)
    const outcome = device.core.body.outcomes.findLast(({ what }) => what === 'install')
    expect(outcome).toMatchObject({ ok: true })
    expect(outcome?.fetched).toBeLessThan(80_000)
    // The record of the slot is whole, though neither index nor inventory was fetched.
    const kept = (name: string) => readFileSync(join(dir, 'good/data/bistable/slots/b', name))
    const { statement, indexBytes, offsets } = second.head
    for (const image of ['boot', 'rootfs'] as const) expect(kept(`${image}.idx`).equals(indexBytes[image])).toBe(true)
    const [inventory] = statement.attachments
    expect(sha256(kept('inventory.zst'))).toBe(inventory?.sha256)
    const asked = web.asked.flatMap((line) => {
      const [, from, to] = /\.bundle bytes=(\d+)-(\d+)/.exec(line) ?? []
      return from === undefined ? [] : [{ from: Number(from), to: Number(to) }]
    })
    const start = offsets.attachments.inventory ?? 0
    expect(asked[0]).toEqual({ from: 0, to: 8191 })
    for (const { from, to } of asked) expect(to < start || from >= start + (inventory?.length ?? 0)).toBe(true)
  })

  it('installs all the same when the patch is damaged, gone, or another one', async () => {
    const path = `/${named?.path}`
    const whole = readFileSync(join(site, named?.path ?? ''))
    const flipped = Buffer.from(whole)
    flipped.writeUInt8((flipped.at(-5) ?? 0) ^ 1, flipped.length - 5)
    const head = Buffer.from(whole)
    head.writeUInt8((head.at(20) ?? 0) ^ 1, 20)
    const cases: readonly [name: string, served: Uint8Array | undefined, code: string][] = [
      ['unit', flipped, 'DELTA_DIGEST'],
      ['head', head, 'DELTA_DIGEST'],
      ['short', whole.subarray(0, 2000), 'DELTA_INVALID'],
      ['gone', undefined, 'TRANSPORT_MISSING'],
    ]
    for (const [name, served, code] of cases) {
      const { web, device, held } = await world(name)
      if (served === undefined) web.files.delete(path)
      else web.files.set(path, served)
      await device.poll()
      expect(device.said.join('\n'), name).toContain(`${code}: `)
      expect(device.said.join('\n'), name).toContain('what it was to give is fetched instead')
      expect(await device.bootState(), name).toMatchObject({ trial: 'b' })
      expect(held().equals(second.bundle.rootfs), name).toBe(true)
    }
  })
})
