import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { PIECE_BYTES } from '../../broker/topics.ts'
import { sha256 } from '../../bundle/digest.ts'
import type { AnnouncedDelta } from '../../bundle/freshness.ts'
import { readHints } from '../../bundle/hints/format.ts'
import type { Core } from '../../device/agent/core.ts'
import { offerHints } from '../../device/agent/hints-offer.ts'
import { planFrom } from '../../device/agent/plan-verb.ts'
import { slotFolder, storeSlot } from '../../device/agent/slot-files.ts'
import { installFrom } from '../../device/agent/work.ts'
import { systemClock } from '../../device/doors/clock.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { planText } from '../../device/install/plan.ts'
import { bundleName, publish } from '../../publisher/publish.ts'
import { Device, NEVER } from '../attacks/device.ts'
import { PublishSite } from '../attacks/web.ts'
import { memorySource } from '../bundle/fixture.ts'
import { signer } from '../keys/helpers.ts'
import { embedded, publisher } from '../mqtt/tools.ts'
import { type Made, release } from './kit.ts'

// The whole way: published with a patch, found in the channel by a device that runs the release before, fetched over HTTP.

let dir: string
let site: string
let first: Made
let second: Made
/** The same without patches. */
let plain: string
let named: AnnouncedDelta | undefined

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-delta-agent-'))
  // Enough of an inventory that hints are worth a request.
  first = await release(dir, 1, { counter: 5, lines: 1500, every: 400 })
  second = await release(dir, 2, { counter: 6, lines: 1500, every: 400 })
  site = join(dir, 'site')
  const request = { to: site, channel: 'stable', signers: [signer(21)], validSeconds: 86_400, deltas: 1 }
  const now = Date.parse('2026-11-21T10:00:00Z')
  await publish({ ...request, bundles: [first.bundle.path], now }, { say: () => undefined })
  named = (await publish({ ...request, bundles: [second.bundle.path], now: now + 1000 }, { say: () => undefined }))
    .deltas?.[0]
  plain = join(dir, 'plain')
  for (const { bundle } of [first, second])
    await publish({ ...request, bundles: [bundle.path], to: plain, deltas: 0, now }, { say: () => undefined })
  return async () => {
    await first.source.close()
    await second.source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

/** The publish folder on a server, and a device that runs `first` and installs by itself. */
async function world(name: string, from = site) {
  const web = await PublishSite.open()
  for (const folder of ['channels', 'bundles', 'deltas', 'roots'])
    for (const file of existsSync(join(from, folder)) ? readdirSync(join(from, folder)) : [])
      web.files.set(`/${folder}/${file}`, readFileSync(join(from, folder, file)))
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

describe('an agent without a patch, and hints beside the bundle', () => {
  const address = (origin: string) => `${origin}/bundles/${bundleName(second.head)}`
  /** Bytes of the bundle, and of its hints, that were asked for. */
  const askedOf = (web: PublishSite, name: RegExp) =>
    web.asked.flatMap((line) => {
      const [, from, to] = /bytes=(\d+)-(\d+)/.exec(line) ?? []
      return name.test(line) && from !== undefined ? [{ from: Number(from), to: Number(to) }] : []
    })
  const planOf = (device: Device, from: string, maxBytes?: number) => {
    const options = { force: false, onProgress: () => undefined, ...(maxBytes === undefined ? {} : { maxBytes }) }
    return planFrom(device.core, from, options, NEVER)
  }
  const indexes = () => second.head.statement.images.reduce((sum, { index }) => sum + index.length, 0)

  it('fetches what is new of chunk indexes and inventory', async () => {
    const { device, held, web } = await world('hints', plain)
    const bundle = address(web.origin)
    const hintsFile = web.files.get(`${new URL(bundle).pathname}.hints`)
    expect(hintsFile).toBeInstanceOf(Uint8Array)
    const planned = await planOf(device, bundle)
    const [inventory] = second.head.statement.attachments
    const whole = indexes() + (inventory?.length ?? 0)
    expect(planned.hints + planned.attachments).toBeLessThan(whole / 3)
    expect(planned.head).toBeLessThan(second.head.offsets.data.boot - whole)
    expect(planText(planned)).toContain(`; hints: ${planned.hints} bytes`)
    // What is announced is what counts, to the byte.
    await expect(planOf(device, bundle, planned.total)).resolves.toEqual(planned)
    await expect(planOf(device, bundle, planned.total - 1)).rejects.toMatchObject({ code: 'INSTALL_BUDGET' })

    web.asked.splice(0)
    const options = { force: false, onProgress: () => undefined }
    await expect(installFrom(device.core, bundle, { ...options, maxBytes: planned.total - 1 }, NEVER)).rejects.toThrow(
      'would be fetched',
    )
    web.asked.splice(0)
    await installFrom(device.core, bundle, { ...options, maxBytes: planned.total }, NEVER)
    expect(device.said.join('\n')).not.toContain('HINTS_')
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(held().equals(second.bundle.rootfs)).toBe(true)
    const kept = (name: string) => readFileSync(join(dir, 'hints/data/bistable/slots/b', name))
    for (const image of ['boot', 'rootfs'] as const)
      expect(kept(`${image}.idx`).equals(second.head.indexBytes[image])).toBe(true)
    expect(sha256(kept('inventory.zst'))).toBe(inventory?.sha256)
    const start = second.head.offsets.attachments.inventory ?? 0
    for (const { from, to } of askedOf(web, /\.bundle /))
      expect(to < start || from >= start + (inventory?.length ?? 0)).toBe(true)
    expect(askedOf(web, /\.hints /).length).toBeLessThanOrEqual(12)
  })

  it('installs all the same when they are damaged, cut, of another release, or not there, and says so', async () => {
    const name = `/bundles/${bundleName(second.head)}.hints`
    const whole = readFileSync(join(plain, name))
    const { pages } = await readHints(memorySource(whole), second.head)
    const flipped = (at: number): Uint8Array => whole.map((byte, i) => (i === at ? byte ^ 1 : byte))
    const cases: readonly [name: string, served: Uint8Array | undefined, code: string][] = [
      ['table', flipped(80), 'HINTS_DIGEST'],
      ['pages', whole.map((byte, i) => (i < (pages[0]?.at ?? 0) ? byte : byte ^ 1)), 'HINTS_INVALID'],
      ['cut', whole.subarray(0, 300), 'HINTS_INVALID'],
      ['other', readFileSync(join(plain, 'bundles', `${bundleName(first.head)}.hints`)), 'HINTS_WRONG_RELEASE'],
      ['none', undefined, 'no hints at http:'],
      ['login', Buffer.from('<!doctype html><html>please log in</html>'), 'TRANSPORT_WRONG_ANSWER'],
    ]
    for (const [title, served, code] of cases) {
      const { web, device, held } = await world(`hints-${title}`, plain)
      if (served === undefined) web.files.delete(name)
      else web.files.set(name, served)
      await device.poll()
      expect(device.said.join('\n'), title).toContain(code)
      expect(device.said.join('\n'), title).toContain('are fetched without hints')
      expect(await device.bootState(), title).toMatchObject({ trial: 'b' })
      expect(held().equals(second.bundle.rootfs), title).toBe(true)
      const kept = readFileSync(join(dir, `hints-${title}/data/bistable/slots/b/inventory.zst`))
      expect(sha256(kept), title).toBe(second.head.statement.attachments[0]?.sha256)
    }
  })

  it('come through a broker, too', async () => {
    const folder = join(dir, 'large')
    mkdirSync(folder)
    const large = await release(folder, 2, { counter: 7, lines: 7500 })
    onTestFinished(() => large.source.close())
    const request = { to: folder, channel: 'stable', signers: [signer(21)], validSeconds: 86_400 }
    const now = Date.parse('2026-11-21T10:00:00Z')
    await publish({ ...request, bundles: [large.bundle.path], now }, { say: () => undefined })
    const broker = await embedded()
    await publisher(folder, broker.url)
    const { device } = await world('hints-mqtt', plain)
    onTestFinished(() => device.ports.brokers?.close())
    const planned = await planOf(device, `mqtt://127.0.0.1:${broker.port}/bundles/${bundleName(large.head)}`)
    expect(device.said.join('\n')).not.toContain('without hints')
    expect(planned.hints).toBeGreaterThan(0)
    const start = large.head.offsets.attachments.inventory ?? 0
    expect(planned.head).toBeLessThan(start - indexes() / 2)
  })

  it('are not asked for where the device has the same indexes and inventory', async () => {
    const same = await world('hints-same', plain)
    const planned = await planOf(same.device, `${same.web.origin}/bundles/${bundleName(first.head)}`).catch(
      (error) => error,
    )
    expect(planned).toMatchObject({ hints: 0, attachments: 0 })
    expect(same.web.asked.filter((line) => line.includes('.hints'))).toEqual([])
  })

  it('are opened once, where they may spare enough; over MQTT that is 8 pieces', async () => {
    const opened: string[] = []
    const said: [string, string | undefined][] = []
    const open = async (address: string) => {
      opened.push(address)
      throw doorErrors.TRANSPORT_MISSING(`${address} answered 404`)
    }
    const core = {
      ports: { engine: { open }, config: { agent: { policy: { download: {} } } }, clock: systemClock },
      say: (line: string, level?: string) => void said.push([line, level]),
    } as unknown as Core
    for (const [from, little, enough] of [
      ['https://example.org/bundles/x.bundle?token=1', 32 * 1024 - 1, 32 * 1024],
      ['mqtts://broker/bundles/x.bundle', 8 * PIECE_BYTES - 1, 8 * PIECE_BYTES],
    ] as const) {
      const hints = offerHints(core, from, NEVER)
      expect(await hints?.of(second.head, little)).toBeUndefined()
      expect(opened).toEqual([])
      expect(await hints?.of(second.head, enough)).toBeUndefined()
      expect(await hints?.of(second.head, enough)).toBeUndefined()
      expect(opened.splice(0)).toEqual([from.replace('x.bundle', 'x.bundle.hints')])
      expect(said.splice(0)).toEqual([[expect.stringMatching(/^bistable: no hints at [^?]+\.hints; /), 'info']])
      await hints?.close()
    }
    expect(offerHints(core, '/media/stick/x.bundle', NEVER)).toBeUndefined()
  })
})
