import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { ByteSource } from '../../base/source.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead, ImageName } from '../../bundle/types.ts'
import { engineOver, type Slots } from '../../device/agent/engine-over.ts'
import { slotFolder } from '../../device/agent/slot-files.ts'
import { install, previewInstall } from '../../device/install/install.ts'
import type { ReuseSource } from '../../device/install/types.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { MemoryFiles } from '../device-agent/memory-files.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { countingDoor } from '../helpers/counting.ts'
import { Machine, ModelDevice, PowerCut } from './model.ts'

// What an install says it will fetch is what it fetches, from real bundles; and what it may not, it does not.

let dir: string
let first: TestBundle
let second: TestBundle

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-plan-'))
  const boot = noise(4096 * 40, 'boot')
  // Blocks of uneven size; the second release has three of them less in front, so that all others moved down.
  const blocks = Array.from({ length: 40 }, (_, i) => noise(20_000 + 997 * i, `block ${i}`))
  const image = (parts: readonly Uint8Array[]) => {
    const bytes = Buffer.concat(parts)
    const padded = Buffer.concat([bytes, Buffer.alloc((4096 - (bytes.length % 4096)) % 4096)])
    let at = 0
    return { rootfs: padded, boundaries: parts.slice(0, -1).map((part) => (at += part.length)) }
  }
  first = await makeBundle(dir, 'first', { boot, ...image(blocks), number: { epoch: 0, counter: 1 } })
  const changed = [...blocks.slice(3, 30), noise(50_000, 'new'), ...blocks.slice(31)]
  second = await makeBundle(dir, 'second', { boot, ...image(changed) })
  return () => rmSync(dir, { recursive: true, force: true })
})

/** A file door that counts, and the head of its bundle. */
async function open(bundle: TestBundle) {
  const { source, counted } = await countingDoor(bundle.path)
  return { source, counted, head: await openBundle(source, { trusted: bundle.trusted }) }
}

function slotWith(bundle?: TestBundle, machine = new Machine()) {
  const device = (name: ImageName, size: number) => {
    const medium = Buffer.alloc(size, 0xee)
    if (bundle !== undefined) medium.set(bundle[name])
    return new ModelDevice(name, medium, machine)
  }
  return { boot: device('boot', 4096 * 50), rootfs: device('rootfs', 4096 * 600) }
}

const nothing = async (): Promise<void> => undefined
const steps = { invalidate: nothing, beforeArm: nothing, arm: nothing }
const reuseOf = (head: BundleHead, slot: ReturnType<typeof slotWith>): ReuseSource[] =>
  (['boot', 'rootfs'] as const).map((name) => ({ name: `old ${name}`, index: head.indexes[name], device: slot[name] }))

describe('the plan of an install', () => {
  it('says what is kept, what comes from where, and the bytes to fetch: the install does just that', async () => {
    const old = await open(first)
    const { source, head, counted } = await open(second)
    const active = slotWith(first)
    const slot = slotWith()
    const reuse = reuseOf(old.head, active)
    const plan = await previewInstall({ source, head, slot, reuse })
    const [boot, rootfs] = plan.images
    expect(boot).toMatchObject({ kept: 0, reused: [{ from: 'old boot', bytes: 4096 * 40 }], fetched: { stored: 0 } })
    expect(rootfs?.reused[0]?.bytes).toBeGreaterThan(900_000)
    // The new block, and its neighbours as far as a chunk goes.
    expect(rootfs?.fetched.stored).toBeGreaterThanOrEqual(50_000)
    expect(rootfs?.fetched.stored).toBeLessThan(700_000)
    const before = counted.bytes
    const result = await install({ source, head, slot, reuse, ...steps })
    expect(result.fetched).toBe((boot?.fetched.stored ?? 0) + (rootfs?.fetched.stored ?? 0))
    // Headers and padding of a few members besides.
    expect(counted.bytes - before - result.fetched).toBeLessThan(10_000)
    expect(plan.total).toBe(plan.head + plan.attachments + result.fetched)
    await source.close()
    await old.source.close()
  })

  it('refuses to fetch more than allowed, before it fetches or writes anything of the images', async () => {
    const { source, head, counted } = await open(second)
    const machine = new Machine()
    const slot = slotWith(undefined, machine)
    const { total } = await previewInstall({ source, head, slot })
    const before = counted.bytes
    expect(await codeOfAsync(() => previewInstall({ source, head, slot, maxBytes: total - 1 }))).toBe('INSTALL_BUDGET')
    expect(await codeOfAsync(() => install({ source, head, slot, ...steps, maxBytes: total - 1 }))).toBe(
      'INSTALL_BUDGET',
    )
    expect(counted.bytes - before).toBeLessThan(10_000)
    expect(machine.events.filter(({ kind }) => kind === 'write' || kind === 'invalidate')).toEqual([])
    await install({ source, head, slot, ...steps, maxBytes: total })
    await source.close()
  })

  it('counts what a place claimed and did not have: the limit holds there too', async () => {
    const old = await open(first)
    const { source, head, counted } = await open(second)
    const reuse = reuseOf(old.head, slotWith())
    const slot = slotWith()
    const { total } = await previewInstall({ source, head, slot, reuse })
    const before = counted.bytes
    const code = await codeOfAsync(() => install({ source, head, slot, reuse, ...steps, maxBytes: total + 1000 }))
    expect(code).toBe('INSTALL_BUDGET')
    expect(counted.bytes - before).toBeLessThan(total + 11_000)
    await install({ source, head, slot, reuse, ...steps })
    await source.close()
    await old.source.close()
  })
})

describe('chunks from elsewhere on the device', () => {
  /** The device's own engine, over slots in memory. Slot a is empty, slot b holds `inactive`. */
  function engineWith(files: MemoryFiles, inactive: ReturnType<typeof slotWith>) {
    const empty = slotWith()
    const place = async (slot: 'a' | 'b', image: ImageName) => (slot === 'a' ? empty : inactive)[image]
    const slots: Slots = { forWriting: place, forReuse: place, forVerifying: place }
    return engineOver('/data', files, slots)
  }
  const call = (source: ByteSource, head: BundleHead) => ({
    source,
    head,
    running: 'a' as const,
    cheapSource: false,
    signal: new AbortController().signal,
    onProgress: () => undefined,
    ...steps,
  })

  it('takes what moved down in the inactive slot, also after a cut', async () => {
    const files = new MemoryFiles()
    const machine = new Machine()
    const slot = slotWith(undefined, machine)
    const one = await open(first)
    await engineWith(files, slot).install(call(one.source, one.head))
    const { source, head } = await open(second)
    const plan = await engineWith(files, slot).plan(call(source, head))
    const moved = plan.images[1]?.reused.reduce((sum, { bytes }) => sum + bytes, 0) ?? 0
    expect(moved).toBeGreaterThan(900_000)

    machine.operationsLeft = 2
    await expect(engineWith(files, slot).install(call(source, head))).rejects.toThrow(PowerCut)
    const after = new Machine()
    const rest = { boot: slot.boot.afterCut(() => 0.7, after), rootfs: slot.rootfs.afterCut(() => 0.7, after) }
    expect(files.content.has(`${slotFolder('/data', 'b')}/rootfs.earlier`)).toBe(true)
    const again = await engineWith(files, rest).install(call(source, head))
    expect(again.images.rootfs.fetched).toBe(plan.images[1]?.fetched.bytes)
    expect(again.images.rootfs.reused).toBeGreaterThan(300_000)
    expect(rest.rootfs.medium.subarray(0, second.rootfs.length).equals(second.rootfs)).toBe(true)
    expect(files.content.has(`${slotFolder('/data', 'b')}/rootfs.earlier`)).toBe(false)
    await source.close()
    await one.source.close()
  })

  it('takes chunks out of a bundle that is named, compressed ones too, and believes none of them', async () => {
    const { source, head } = await open(second)
    const engine = engineWith(new MemoryFiles(), slotWith())
    const plan = await engine.plan({ ...call(source, head), reuse: [first.path] })
    const result = await engine.install({ ...call(source, head), reuse: [first.path] })
    expect(plan.images[1]?.reused).toEqual([{ from: first.path, bytes: result.images.rootfs.reused }])
    expect(result.images.boot).toMatchObject({ fetched: 0, reused: 4096 * 40 })
    expect(result.images.rootfs.reused).toBeGreaterThan(900_000)
    expect(await codeOfAsync(() => engine.plan({ ...call(source, head), reuse: [`${dir}/none`] }))).toBe(
      'TRANSPORT_MISSING',
    )
    await source.close()
  })
})
