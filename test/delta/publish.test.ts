import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import { fileSource } from '../../bundle/file-source.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { engineOver } from '../../device/agent/engine-over.ts'
import type { OfferedPatch } from '../../device/agent/ports.ts'
import { slotFolder, storeSlot } from '../../device/agent/slot-files.ts'
import { deltaName, earlierBundles } from '../../publisher/delta/published.ts'
import { publish } from '../../publisher/publish.ts'
import { MemoryFiles } from '../device-agent/memory-files.ts'
import { signer } from '../keys/helpers.ts'
import { type Made, release, slots } from './kit.ts'

// What a publisher puts beside its bundles, and what a device makes of it.

let dir: string
let first: Made
let second: Made

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-delta-publish-'))
  first = await release(dir, 1)
  second = await release(dir, 2)
  return async () => {
    await first.source.close()
    await second.source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

const say: string[] = []
const publishTo = (to: string, made: Made, deltas: number) =>
  publish(
    {
      ...{ bundles: [made.bundle.path], to, channel: 'stable', signers: [signer(21)] },
      ...{ now: Date.parse('2026-11-22T10:00:00Z'), validSeconds: 86_400, deltas },
    },
    { say: (line) => void say.push(line) },
  )

describe('publishing with patches', () => {
  it('makes one from each of the last releases, names it in the channel, and makes it once', async () => {
    const to = join(dir, 'site')
    expect((await publishTo(to, first, 2)).deltas).toBeUndefined()
    const { deltas } = await publishTo(to, second, 2)
    expect(deltas).toHaveLength(1)
    const [named] = deltas ?? []
    expect(named?.from).toBe(first.head.digest)
    expect(named?.path).toBe(`deltas/${deltaName(first.head, second.head)}`)
    const file = join(to, named?.path ?? '')
    expect(statSync(file).size).toBe(named?.size)
    const source = await fileSource(file)
    const head = await readDeltaHead(source, named?.head)
    expect(head).toMatchObject({ from: first.head.digest, to: second.head.digest })
    await source.close()

    const before = statSync(file).mtimeMs
    expect((await publishTo(to, second, 2)).deltas).toEqual(deltas)
    expect(statSync(file).mtimeMs).toBe(before)
    // A torn one is made anew.
    truncateSync(file, 1000)
    expect((await publishTo(to, second, 2)).deltas).toEqual(deltas)
    expect((await publishTo(to, second, 0)).deltas).toBeUndefined()
    expect(readdirSync(join(to, 'deltas'))).toEqual([deltaName(first.head, second.head)])
  })

  it('counts back by release numbers, within one product', () => {
    const head = { statement: { product: 'demo', number: { epoch: 1, counter: 10 } } } as BundleHead
    const names = ['demo-1.9-0123456789ab.bundle', 'demo-1.10-0123456789ab.bundle', 'demo-0.30-0123456789ab.bundle']
    const other = ['demo-x-1.8-0123456789ab.bundle', '.123.new', 'demo-1.2-0123456789ab.bundle', 'demo-1.8.bundle']
    expect(earlierBundles([...names, ...other], head).map(({ name }) => name.slice(5, 9))).toEqual([
      '1.9-',
      '1.2-',
      '0.30',
    ])
  })
})

describe('the engine of a device', () => {
  /** A device that runs `first`, and has on record what it runs. */
  async function device() {
    const files = new MemoryFiles()
    const places = { a: slots(first), b: slots() }
    const place = async (slot: 'a' | 'b', image: 'boot' | 'rootfs') => places[slot][image]
    const engine = engineOver('/data', files, { forWriting: place, forReuse: place, forVerifying: place })
    await storeSlot(files, slotFolder('/data', 'a'), first.head, first.source, new AbortController().signal)
    return { engine, files, places }
  }
  const nothing = async (): Promise<void> => undefined
  const call = (patch: OfferedPatch) => ({
    ...{ source: second.source, head: second.head, running: 'a' as const, cheapSource: false },
    ...{ signal: new AbortController().signal, onProgress: () => undefined, patch },
    ...{ invalidate: nothing, beforeArm: nothing, arm: nothing },
  })

  it('uses the patch that the channel named, and goes on without one that does not fit', async () => {
    const to = join(dir, 'engine')
    await publishTo(to, first, 1)
    const named = (await publishTo(to, second, 1)).deltas?.[0]
    const open = () => fileSource(join(to, named?.path ?? ''))
    const refused: Error[] = []
    const opened: { close(): Promise<void> }[] = []
    const offer = async (announced = named?.head): Promise<OfferedPatch> => {
      const source = await open()
      opened.push(source)
      return { source, announced, onRefused: (error) => void refused.push(error) }
    }
    const good = await device()
    const plan = await good.engine.plan(call(await offer()))
    expect(plan.images[1]?.patched.units).toBeGreaterThan(0)
    const { fetched, images } = await good.engine.install(call(await offer()))
    expect(images.rootfs.patched).toBe(plan.images[1]?.patched.bytes)
    expect(good.places.b.rootfs.medium.subarray(0, second.bundle.rootfs.length).equals(second.bundle.rootfs)).toBe(true)
    expect(refused).toEqual([])

    const other = await device()
    const without = await other.engine.install(call(await offer(named && { ...named.head, sha256: first.head.digest })))
    expect(refused).toMatchObject([{ code: 'DELTA_DIGEST' }])
    expect(without.fetched).toBeGreaterThan(4 * fetched)

    // Nothing on record about the running slot: nobody knows what a patch would start from.
    const unknown = await device()
    await unknown.files.remove(`${slotFolder('/data', 'a')}/release.json`)
    await unknown.engine.install(call(await offer()))
    expect(refused).toMatchObject([{ code: 'DELTA_DIGEST' }, { code: 'DELTA_WRONG_RELEASE' }])
    for (const one of opened) await one.close()
  })
})

describe('the command', () => {
  it('makes a patch between two bundles and says what it saves', async () => {
    const { runCli } = await import('../../base/cli.ts')
    const { deltaVerb } = await import('../../publisher/verbs/delta.ts')
    const out: string[] = []
    const terminal = { interactive: false, out: (line: string) => void out.push(line), err: () => undefined }
    const output = join(dir, 'by-hand.delta')
    const argv = ['delta', first.bundle.path, second.bundle.path, '-o', output]
    const run = (...more: string[]) => runCli([deltaVerb], [...argv, ...more], terminal, new AbortController().signal)
    expect(await run()).toBe(0)
    const { size } = statSync(output)
    expect(out[0]).toContain(`by-hand.delta: ${size} bytes`)
    expect(await run('--json')).toBe(0)
    expect(JSON.parse(out[1] ?? '')).toMatchObject({ ok: true, from: first.head.digest, to: second.head.digest, size })
    expect(readFileSync(output).length).toBe(size)
    const wrong = join(dir, 'not-a.bundle')
    writeFileSync(wrong, 'no bundle')
    expect(
      await runCli([deltaVerb], ['delta', wrong, wrong, '-o', output], terminal, new AbortController().signal),
    ).toBe(3)
  })
})
