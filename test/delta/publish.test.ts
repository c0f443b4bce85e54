import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import { packSide, type Sides } from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import { fileSource } from '../../bundle/file-source.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { engineOver } from '../../device/agent/engine-over.ts'
import type { OfferedPatch } from '../../device/agent/ports.ts'
import { slotFolder, storeSlot } from '../../device/agent/slot-files.ts'
import { makeDelta } from '../../publisher/delta/make.ts'
import { deltaName, earlierBundles } from '../../publisher/delta/published.ts'
import { publish } from '../../publisher/publish.ts'
import { NEVER } from '../attacks/device.ts'
import { MemoryFiles } from '../device-agent/memory-files.ts'
import { countingDoor } from '../helpers/counting.ts'
import { signer } from '../keys/helpers.ts'
import { type Made, release, slots } from './kit.ts'

// What a publisher puts beside its bundles, and what a device makes of it.

let dir: string
let first: Made
let second: Made
let patch: string

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-delta-publish-'))
  first = await release(dir, 1)
  second = await release(dir, 2)
  patch = join(dir, 'sides.delta')
  await makeDelta(first, second, patch, { say: () => undefined })
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

  it('an old bundle that is damaged costs its patch, and not the release', async () => {
    const to = join(dir, 'damaged')
    const { path } = await publishTo(to, first, 0)
    truncateSync(join(to, path), 5000)
    say.length = 0
    const { deltas, number } = await publishTo(to, second, 2)
    expect([deltas, number.counter]).toEqual([undefined, 2])
    expect(say.join('\n')).toMatch(/no patch from demo-0\.1-[0-9a-f]{12}\.bundle: /)
    expect(readdirSync(join(to, 'deltas'))).toEqual([])
  })

  it('takes the place of a file, and of nothing else', async () => {
    const pipe = join(dir, 'pipe')
    execFileSync('mkfifo', [pipe])
    for (const output of ['/dev/null', pipe, dir])
      await expect(makeDelta(first, second, output, { say: () => undefined }), output).rejects.toMatchObject({
        code: 'FILE_FAILED',
      })
    expect(statSync('/dev/null').isCharacterDevice()).toBe(true)
    expect(statSync(pipe).isFIFO()).toBe(true)
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
    const offer = async (): Promise<OfferedPatch> => {
      const source = await open()
      opened.push(source)
      const head = await readDeltaHead(source, named?.head)
      return { source, head, onRefused: (error) => void refused.push(error) }
    }
    const good = await device()
    const plan = await good.engine.plan(call(await offer()))
    expect(plan.images[1]?.patched.units).toBeGreaterThan(0)
    const { fetched, images } = await good.engine.install(call(await offer()))
    expect(images.rootfs.patched).toBe(plan.images[1]?.patched.bytes)
    expect(good.places.b.rootfs.medium.subarray(0, second.bundle.rootfs.length).equals(second.bundle.rootfs)).toBe(true)
    expect(refused).toEqual([])

    // Nothing on record about the running slot: nobody knows what a patch would start from.
    const unknown = await device()
    await unknown.files.remove(`${slotFolder('/data', 'a')}/release.json`)
    const without = await unknown.engine.install(call(await offer()))
    expect(refused).toMatchObject([{ code: 'DELTA_WRONG_RELEASE' }])
    expect(without.fetched).toBeGreaterThan(4 * fetched)
    for (const one of opened) await one.close()
  })
})

describe('the head of a bundle with a patch at hand', () => {
  /** A device that runs `first`, the patch with other sides, and what reading the head of `second` takes. */
  async function read(change: (sides: Sides) => Partial<Sides>, spoil?: (files: MemoryFiles) => Promise<void>) {
    const { source, counted } = await countingDoor(second.bundle.path)
    const delta = await fileSource(patch)
    const files = new MemoryFiles()
    const folder = slotFolder('/data', 'a')
    await storeSlot(files, folder, first.head, first.source, NEVER)
    await spoil?.(files)
    const found = await readDeltaHead(delta)
    const refused: string[] = []
    const onRefused = (error: Error) => void refused.push(isBistableError(error) ? error.code : String(error))
    const offered = { source: delta, head: { ...found, sides: { ...found.sides, ...change(found.sides) } }, onRefused }
    const none = async () => expect.unreachable('no slot is opened')
    const engine = engineOver('/data', files, { forWriting: none, forReuse: none, forVerifying: none })
    const head = await engine.head(source, second.bundle.trusted, NEVER, { offered, running: 'a' })
    await source.close()
    await delta.close()
    // Whatever a patch says: the signed indexes, byte for byte.
    for (const image of ['boot', 'rootfs'] as const)
      expect(sha256(head.indexBytes[image])).toBe(sha256(second.head.indexBytes[image]))
    return { spared: head.spared, read: counted.bytes, refused }
  }
  const indexes = () => second.head.statement.images.reduce((sum, { index }) => sum + index.length, 0)

  it('reads neither index, and of the boot image not even the header behind the first', async () => {
    const { spared, refused, read: bytes } = await read(() => ({}))
    expect(refused).toEqual([])
    expect(spared).toBeGreaterThanOrEqual(indexes())
    expect(bytes).toBeLessThanOrEqual(8 * 1024)
    const whole = await read((sides) => Object.fromEntries(Object.keys(sides).map((name) => [name, Buffer.alloc(0)])))
    expect(whole).toMatchObject({ spared: 0, refused: [] })
    expect(whole.read).toBeGreaterThan(indexes())
  })

  it('reads the index itself when the patch makes another one, or the old one is not there', async () => {
    const flipped = (side: Uint8Array): Uint8Array => side.map((byte, i) => (i === side.length >> 1 ? byte ^ 1 : byte))
    const swapped = await read(({ boot, rootfs }) => ({ boot: rootfs, rootfs: boot }))
    expect(swapped).toMatchObject({ spared: 0, refused: ['DELTA_INVALID', 'DELTA_INVALID'] })
    const other = await read(({ rootfs }) => ({ rootfs: flipped(rootfs) }))
    expect(other.refused).toEqual([expect.stringMatching(/^DELTA_(INVALID|DIGEST)$/)])
    const digest = await read(() => ({
      boot: packSide(first.head.indexBytes.boot, first.head.indexBytes.boot, 1e6),
    }))
    expect(digest.refused).toEqual(['DELTA_DIGEST'])
    const gone = await read(
      () => ({}),
      (files) => files.remove(`${slotFolder('/data', 'a')}/rootfs.idx`),
    )
    expect(gone.refused).toEqual([])
    expect(gone.spared).toBeLessThan(indexes())
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
