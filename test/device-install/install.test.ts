import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { ByteSource } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { openBundle } from '../../bundle/reader.ts'
import { treeSize } from '../../bundle/tree.ts'
import type { BundleHead, ChunkIndex } from '../../bundle/types.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { install } from '../../device/install/install.ts'
import type { InstallProgress, InstallRequest } from '../../device/install/types.ts'
import { slotFault } from '../../device/install/verify.ts'
import { slotErrors } from '../../device/slots/errors.ts'
import { haveTool, noise, run } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { type Event, ioError, Machine, ModelDevice, PowerCut, randomFrom } from './model.ts'
import { openQuick, sendFile, serve } from './web.ts'

const BLOCKS = 700
let dir: string
let bundle: TestBundle
let old: TestBundle
let source: ByteSource
let head: BundleHead

/** Ends of blocks of uneven size, as a file system image has them: chunks then start at any byte. */
function unevenEnds(length: number): number[] {
  const random = randomFrom(7)
  const ends: number[] = []
  for (let at = 0; ; ) {
    at += 1000 + Math.floor(random() * 90_000)
    if (at >= length) return ends
    ends.push(at)
  }
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-install-'))
  // The boot image compresses well, so that its chunks are stored as zstd; the rootfs image is noise.
  const boot = Buffer.concat([Buffer.alloc(300_000, 'kernel '), noise(4096 * 80 - 300_000, 'boot')])
  const rootfs = noise(4096 * BLOCKS, 'rootfs')
  const before = Buffer.from(rootfs)
  before.fill(1, 1_000_000, 1_300_000)
  const boundaries = unevenEnds(rootfs.length)
  bundle = await makeBundle(dir, 'new', { boot, rootfs, boundaries })
  old = await makeBundle(dir, 'old', { boot, rootfs: before, boundaries, number: { epoch: 0, counter: 1 } })
  source = await openFileDoor(bundle.path)
  head = await openBundle(source, { trusted: bundle.trusted })
  return async () => {
    await source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

interface Bench {
  readonly machine: Machine
  readonly slot: { readonly boot: ModelDevice; readonly rootfs: ModelDevice }
}

function bench(fill: number | { boot: Uint8Array; rootfs: Uint8Array } = 0xee): Bench {
  const machine = new Machine()
  const device = (name: 'boot' | 'rootfs', size: number): ModelDevice => {
    const medium = Buffer.alloc(size, typeof fill === 'number' ? fill : 0)
    if (typeof fill !== 'number') medium.set(fill[name])
    return new ModelDevice(name, medium, machine)
  }
  return { machine, slot: { boot: device('boot', 512 * 1024), rootfs: device('rootfs', 4096 * 800) } }
}

function request(on: Bench, extra: Partial<InstallRequest> = {}): InstallRequest {
  const note = (kind: 'invalidate' | 'beforeArm' | 'arm') => async () => on.machine.happen({ kind, device: '' })
  return {
    source,
    head,
    slot: on.slot,
    invalidate: note('invalidate'),
    beforeArm: note('beforeArm'),
    arm: note('arm'),
    ...extra,
  }
}

const rootfsOf = ({ statement }: BundleHead) => {
  const image = statement.images.find((one) => one.name === 'rootfs')
  if (image === undefined) throw new Error('no rootfs')
  return image
}
const armed = (on: Bench): boolean => on.machine.events.some((event) => event.kind === 'arm')

async function holds(on: Bench): Promise<boolean> {
  for (const image of head.statement.images)
    if ((await slotFault(on.slot[image.name], image)) !== undefined) return false
  return true
}

/** Stored bytes of the chunks that the slot does not hold. */
function missing(on: Bench): number {
  return head.statement.images.reduce((sum, { name }) => sum + lacking(head.indexes[name], on.slot[name].medium), 0)
}

function lacking(index: ChunkIndex, bytes: Buffer): number {
  return index.chunks.reduce(
    (sum, one) =>
      sha256(bytes.subarray(one.offset, one.offset + one.length)) === one.digest ? sum : sum + one.storedLength,
    0,
  )
}

/** Counts what is read from a source; may lie. */
function watched(inner: ByteSource, change: (at: number, piece: Uint8Array) => Uint8Array = (_, piece) => piece) {
  const counted = { bytes: 0 }
  const from: ByteSource = {
    name: inner.name,
    size: inner.size,
    async *read(offset, length, options) {
      let at = offset
      for await (const piece of inner.read(offset, length, options)) {
        const given = change(at, piece)
        counted.bytes += given.length
        at += piece.length
        yield given
      }
    },
    close: () => inner.close(),
  }
  return { source: from, counted }
}

describe('install', () => {
  it('writes, flushes, reads everything back, and arms last', async () => {
    const on = bench()
    const result = await install(request(on))
    const { events } = on.machine
    expect(events[0]?.kind).not.toBe('write')
    const kinds = events.map((event) => event.kind)
    expect(kinds.indexOf('invalidate')).toBeLessThan(kinds.indexOf('write'))
    expect(kinds.filter((kind) => kind === 'invalidate')).toHaveLength(1)
    expect(kinds.slice(-2)).toEqual(['beforeArm', 'arm'])
    for (const { name, length } of head.statement.images) {
      const own = events.filter((event) => event.device === name)
      expectAllReadAfterFlush(own, length + treeSize(length))
    }
    expect(await holds(on)).toBe(true)
    expect(on.slot.rootfs.medium.subarray(0, bundle.rootfs.length).equals(bundle.rootfs)).toBe(true)
    expect(on.slot.boot.medium.subarray(0, bundle.boot.length).equals(bundle.boot)).toBe(true)
    expect(result).toEqual({
      images: {
        boot: { kept: 0, reused: 0, fetched: bundle.boot.length },
        rootfs: { kept: 0, reused: 0, fetched: bundle.rootfs.length },
      },
      fetched: missing(bench()),
      freshness: 'direct',
    })
    expect(head.indexes.boot.chunks.some((chunk) => chunk.encoding === 'zstd')).toBe(true)
  })

  it.skipIf(!haveTool('veritysetup'))(
    'writes the tree that veritysetup writes, where the initramfs looks for it',
    async () => {
      const on = bench(0)
      await install(request(on))
      const path = join(dir, 'slot.img')
      writeFileSync(path, on.slot.rootfs.medium)
      const { length, root } = rootfsOf(head)
      // Exits non-zero when the tree does not match; it reads data and hash from the same device, as the kernel does.
      run(
        'veritysetup',
        'verify',
        path,
        path,
        root,
        '--no-superblock',
        '--salt=-',
        `--hash-offset=${length}`,
        `--data-blocks=${length / 4096}`,
      )
      expect(readFileSync(path).length).toBe(on.slot.rootfs.size)
    },
  )

  it('touches nothing when the slot holds all of it already, and still verifies', async () => {
    const on = bench()
    await install(request(on))
    on.machine.events.length = 0
    const result = await install(request(on))
    expect(result.fetched).toBe(0)
    expect(on.machine.events.filter((e) => e.kind === 'write' || e.kind === 'invalidate')).toEqual([])
    expect(on.machine.events.some((event) => event.kind === 'fresh')).toBe(true)
    expect(armed(on)).toBe(true)
  })

  it('fetches only what differs from the release that the slot held', async () => {
    const on = bench({ boot: old.boot, rootfs: old.rootfs })
    const wanted = missing(on)
    const { source: from, counted } = watched(source)
    const result = await install(request(on, { source: from }))
    expect(result.fetched).toBe(wanted)
    expect(result.images.boot).toEqual({ kept: bundle.boot.length, reused: 0, fetched: 0 })
    expect(wanted).toBeLessThan(600_000)
    // Framing aside.
    expect(counted.bytes - wanted).toBeLessThan(8 * 1024)
    expect(await holds(on)).toBe(true)
  })

  it('from a cheap source: a slot without anything of use is not searched, one with something is', async () => {
    const searched = async (on: Bench) => {
      const read = { boot: 0, rootfs: 0 }
      for (const name of ['boot', 'rootfs'] as const) {
        const device = on.slot[name]
        const inner = device.read.bind(device)
        device.read = async (offset, into, options) => {
          if (!options.fresh) read[name] += into.length
          await inner(offset, into, options)
        }
      }
      const result = await install(request(on, { cheapSource: true }))
      expect(await holds(on)).toBe(true)
      return { ...result, read }
    }
    const strange = await searched(bench())
    expect(strange.fetched).toBe(missing(bench()))
    expect(strange.read.rootfs).toBeLessThan(bundle.rootfs.length)

    const like = bench({ boot: old.boot, rootfs: old.rootfs })
    const wanted = missing(like)
    const shared = await searched(like)
    expect(shared.fetched).toBe(wanted)
    expect(shared.read.rootfs).toBeGreaterThan(bundle.rootfs.length)

    // An install that was stopped early leaves its first chunks only.
    const stopped = bench()
    const [first] = head.indexes.rootfs.chunks
    stopped.slot.rootfs.medium.set(bundle.rootfs.subarray(0, first?.length))
    const fresh = new ModelDevice('rootfs', stopped.slot.rootfs.medium, stopped.machine)
    const resumed = await searched({ ...stopped, slot: { ...stopped.slot, rootfs: fresh } })
    expect(resumed.images.rootfs.kept).toBe(first?.length)
  })

  it('takes chunks from the active slot, checked, and the rest through the door', async () => {
    const other = bench({ boot: old.boot, rootfs: old.rootfs })
    const oldSource = await openFileDoor(old.path)
    const oldHead = await openBundle(oldSource, { trusted: old.trusted })
    await oldSource.close()
    const reuse = (['boot', 'rootfs'] as const).map((name) => ({
      name,
      index: oldHead.indexes[name],
      device: other.slot[name],
    }))
    const on = bench()
    const result = await install(request(on, { reuse }))
    expect(result.fetched).toBe(missing(other))
    expect(result.images.rootfs.reused).toBeGreaterThan(2_000_000)
    expect(await holds(on)).toBe(true)

    // A place that does not hold what its index says costs a fetch, nothing else.
    const lying = bench(0x55)
    const liars = reuse.map((one) => ({ ...one, device: lying.slot[one.name as 'boot' | 'rootfs'] }))
    const again = bench()
    expect((await install(request(again, { reuse: liars }))).fetched).toBe(missing(bench()))
    expect(await holds(again)).toBe(true)
  })

  it('reports progress that only rises, per phase and image', async () => {
    const seen: InstallProgress[] = []
    await install(request(bench(), { onProgress: (progress) => seen.push(progress) }))
    const phases = [...new Set(seen.map((one) => `${one.image} ${one.phase}`))]
    expect(phases).toEqual([
      'boot scan',
      'rootfs scan',
      'boot fill',
      'rootfs fill',
      'boot verify',
      'rootfs verify',
      'undefined finish',
    ])
    for (const phase of phases.slice(0, -1)) {
      const own = seen.filter((one) => `${one.image} ${one.phase}` === phase)
      expect(own.map((one) => one.done)).toEqual([...own.map((one) => one.done)].sort((a, b) => a - b))
      expect(own.at(-1)?.done).toBe(own[0]?.total)
    }
  })
})

function expectAllReadAfterFlush(events: readonly Event[], length: number): void {
  const lastWrite = events.findLastIndex((event) => event.kind === 'write')
  const lastFlush = events.findLastIndex((event) => event.kind === 'flush')
  expect(lastFlush).toBeGreaterThan(lastWrite)
  const covered = new Uint8Array(length / 4096)
  for (const [i, event] of events.entries()) {
    if (event.kind !== 'fresh') continue
    // A block counts as read back when no write to it and no flush that it needed comes after the read.
    const laterWrite = events
      .slice(i)
      .some((e) => e.kind === 'write' && e.offset < event.offset + event.length && event.offset < e.offset + e.length)
    const earlierFlush = events.slice(0, i).some((e) => e.kind === 'flush')
    if (!laterWrite && earlierFlush) covered.fill(1, event.offset / 4096, (event.offset + event.length) / 4096)
  }
  expect(covered.every((one) => one === 1)).toBe(true)
}

describe('a slot that cannot be read everywhere', () => {
  it('is written over there, and keeps what can be read', async () => {
    const size = bundle.rootfs.length
    // At the start, across two of the pieces that are read at once, at the end, and in the tree behind.
    for (const at of [0, 1024 * 1024, size - 4096, size + 4096])
      for (const fill of [0xee, { boot: bundle.boot, rootfs: bundle.rootfs }]) {
        const on = bench(fill)
        on.slot.rootfs.bad.add(at)
        const { fetched } = await install(request(on))
        expect([armed(on), on.slot.rootfs.bad.size], `${at}`).toEqual([true, 0])
        // What can be read is kept.
        if (fill !== 0xee) expect(fetched).toBeLessThan(size / 2)
        const cheap = bench(fill)
        cheap.slot.rootfs.bad.add(at)
        await install(request(cheap, { cheapSource: true }))
        expect(armed(cheap)).toBe(true)
      }
  })
})

describe('install refuses to arm', () => {
  it('when the slot is too small, before any write', async () => {
    const machine = new Machine()
    const small = new ModelDevice('rootfs', Buffer.alloc(4096 * BLOCKS + 4096), machine)
    const on = { machine, slot: { ...bench().slot, rootfs: small } }
    const error = await install(request(on)).catch((caught: unknown) => caught)
    expect(error).toMatchObject({ code: 'SLOT_TOO_SMALL', details: { length: 4096 * BLOCKS, tree: 7 * 4096 } })
    expect(machine.events).toEqual([])
  })

  it('when a write or a flush fails, and writes nothing more to that device', async () => {
    for (const code of ['EIO', 'ENOSPC'] as const) {
      for (const nth of [1, 2, 4]) {
        const on = bench()
        let count = 0
        const fail = (): never => {
          throw slotErrors[code === 'EIO' ? 'SLOT_WRITE_FAILED' : 'SLOT_NO_SPACE']('injected', { cause: ioError(code) })
        }
        on.slot.rootfs.faults.onWrite = (_, bytes) => (++count >= nth ? fail() : bytes)
        expect(await codeOfAsync(() => install(request(on)))).toBe(
          code === 'EIO' ? 'SLOT_WRITE_FAILED' : 'SLOT_NO_SPACE',
        )
        expect(count).toBe(nth)
        expect(armed(on)).toBe(false)
      }
    }
    const on = bench()
    on.slot.rootfs.faults.onFlush = () => {
      throw slotErrors.SLOT_WRITE_FAILED('injected')
    }
    expect(await codeOfAsync(() => install(request(on)))).toBe('SLOT_WRITE_FAILED')
    expect(armed(on)).toBe(false)
  })

  it('C4 when the medium flips a bit, loses a write or tears it, in image or tree', async () => {
    const tree = bundle.rootfs.length
    for (const at of [0, 1_234_567, tree - 1, tree, tree + 5000, tree + 7 * 4096 - 1]) {
      const on = bench()
      // The first flush is that of the image, the second that of the tree.
      let flushes = 0
      on.slot.rootfs.faults.afterFlush = (medium) => {
        if (++flushes === (at >= tree ? 2 : 1)) medium[at] = (medium[at] ?? 0) ^ 4
      }
      expect(await codeOfAsync(() => install(request(on))), `bit at ${at}`).toBe('INSTALL_READBACK_MISMATCH')
      expect(armed(on)).toBe(false)
    }
    for (const lost of [0, 1, 2, 3]) {
      const on = bench()
      let count = 0
      on.slot.rootfs.faults.onWrite = (_, bytes) => (count++ === lost ? bytes.slice(0, 0) : bytes)
      expect(await codeOfAsync(() => install(request(on))), `write ${lost}`).toBe('INSTALL_READBACK_MISMATCH')
      expect(armed(on)).toBe(false)
    }
    const torn = bench()
    torn.slot.rootfs.faults.onWrite = (_, bytes) => bytes.slice(0, bytes.length - 512)
    expect(await codeOfAsync(() => install(request(torn)))).toBe('INSTALL_READBACK_MISMATCH')
  })

  it('when a fresh read fails', async () => {
    const on = bench()
    on.slot.rootfs.faults.onFreshRead = (offset) => {
      if (offset > 0) throw slotErrors.SLOT_READ_FAILED('injected')
    }
    expect(await codeOfAsync(() => install(request(on)))).toBe('SLOT_READ_FAILED')
    expect(armed(on)).toBe(false)
  })

  it('C1 when the source gives other bytes than it was verified with', async () => {
    for (const image of ['boot', 'rootfs'] as const) {
      const on = bench()
      const target = head.offsets.data[image] + 5
      const lie = watched(source, (at, piece) => {
        if (at > target || at + piece.length <= target) return piece
        const changed = Uint8Array.from(piece)
        changed[target - at] = (changed[target - at] ?? 0) ^ 1
        return changed
      })
      expect(await codeOfAsync(() => install(request(on, { source: lie.source })))).toBe('BUNDLE_DIGEST')
      expect(armed(on)).toBe(false)
      // What was good is kept.
      expect(missing(on)).toBeLessThanOrEqual(missing(bench()))
    }
  })

  it('A15 when the source is short, or its framing is not right', async () => {
    const on = bench()
    const data = head.offsets.data.rootfs
    const short = watched(source, (at, piece) => (at >= data && piece.length > 4096 ? piece.subarray(0, 10) : piece))
    expect(await codeOfAsync(() => install(request(on, { source: short.source })))).toBe('BUNDLE_DIGEST')
    const header = head.offsets.data.rootfs - 512
    const framing = watched(source, (at, piece) => (at === header ? Uint8Array.from(piece).fill(1, 0, 1) : piece))
    const untouched = bench()
    expect(await codeOfAsync(() => install(request(untouched, { source: framing.source })))).toBe('BUNDLE_HEADER')
    expect(untouched.machine.events).toEqual([])
    expect(armed(on)).toBe(false)
  })

  it('when index and statement contradict each other, and says that it is not the medium', async () => {
    const statement = {
      ...head.statement,
      images: head.statement.images.map((image) => ({ ...image, root: sha256(Buffer.from(image.name)) })),
    }
    const on = bench()
    expect(await codeOfAsync(() => install(request(on, { head: { ...head, statement } })))).toBe('BUNDLE_ROOT_HASH')
    expect(armed(on)).toBe(false)
  })

  it('when a callback fails: nothing is written without invalidate, nothing armed without beforeArm', async () => {
    const fail = async () => {
      throw new Error('no')
    }
    const first = bench()
    await expect(install(request(first, { invalidate: fail }))).rejects.toThrow('no')
    expect(first.machine.events.filter((event) => event.kind === 'write')).toEqual([])
    const second = bench()
    await expect(install(request(second, { beforeArm: fail }))).rejects.toThrow('no')
    expect(armed(second)).toBe(false)
  })

  it('when cancelled, at any phase before arming; what has arrived is kept', async () => {
    for (const phase of ['boot scan', 'boot fill', 'rootfs scan', 'rootfs fill', 'rootfs verify', 'undefined finish']) {
      const on = bench()
      const abort = new AbortController()
      let nth = 0
      const onProgress = (one: InstallProgress) => {
        if (`${one.image} ${one.phase}` === phase && ++nth === (phase.endsWith('fill') ? 3 : 1)) abort.abort()
      }
      expect(await codeOfAsync(() => install(request(on, { signal: abort.signal, onProgress }))), phase).toBe(
        'INSTALL_CANCELLED',
      )
      expect(armed(on)).toBe(false)
      if (phase === 'rootfs fill') expect(missing(on)).toBeLessThan(missing(bench()))
      await install(request(on))
      expect(await holds(on)).toBe(true)
    }
  })

  it('is not cancelled any more once arming has begun', async () => {
    const on = bench()
    const abort = new AbortController()
    const arm = async () => {
      abort.abort()
      on.machine.happen({ kind: 'arm', device: '' })
    }
    await install(request(on, { signal: abort.signal, arm }))
    expect(armed(on)).toBe(true)
  })
})

describe('install and power cuts', () => {
  it('goes on after cuts at random moments: never armed early, same root, nothing fetched that is there', async () => {
    const seed = Number(process.env['BISTABLE_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
    console.log(`power cuts: BISTABLE_SEED=${seed}`)
    const random = randomFrom(seed)
    /** Time jumps now and then, so that the writer flushes in the background too. */
    const now = () => clock
    let clock = 0
    for (let round = 0; round < 20; round++) {
      let on = bench()
      let cuts = 0
      for (;;) {
        const machine = on.machine
        machine.operationsLeft = cuts < 3 ? Math.floor(random() * 14) : Number.POSITIVE_INFINITY
        const wanted = missing(on)
        const { source: from, counted } = watched(source)
        const onProgress = () => {
          if (random() < 0.2) clock += 6000
        }
        const end = await install(request(on, { source: from, now, onProgress })).then(
          () => 'done',
          (error: unknown) => {
            if (error instanceof PowerCut) return 'cut'
            throw error
          },
        )
        // 8 KiB: the framing.
        expect(counted.bytes, `seed ${seed} round ${round}`).toBeLessThanOrEqual(wanted + 8 * 1024)
        if (end === 'done') break
        expect(armed(on), `seed ${seed} round ${round}`).toBe(false)
        cuts++
        const next = new Machine()
        on = {
          machine: next,
          slot: { boot: on.slot.boot.afterCut(random, next), rootfs: on.slot.rootfs.afterCut(random, next) },
        }
      }
      expect(on.machine.events.at(-1)?.kind).toBe('arm')
      expect(await holds(on), `seed ${seed} round ${round}`).toBe(true)
    }
  })

  it('loses at most what came since the last flush: a slow door is flushed by time', async () => {
    const on = bench()
    let clock = 0
    on.machine.operationsLeft = 60
    let fetched = 0
    const onProgress = (one: InstallProgress) => {
      fetched = one.fetched
      if (one.phase === 'fill') clock += 6000
    }
    await expect(install(request(on, { now: () => clock, onProgress }))).rejects.toThrow(PowerCut)
    // The worst cut: nothing unflushed survives. One chunk waits for its flush, one is being written, one just came.
    const survived = missing(bench()) - missing(on)
    const largest = Math.max(...head.indexes.rootfs.chunks.map((chunk) => chunk.storedLength))
    expect(survived).toBeGreaterThan(1_000_000)
    expect(fetched - survived).toBeLessThanOrEqual(3 * largest)
    expect(largest).toBeLessThanOrEqual(256 * 1024)
  })
})

describe('install over HTTP', () => {
  it('finishes while the server goes away and comes back, fetching each chunk once', async () => {
    const bytes = readFileSync(bundle.path)
    let sent = 0
    const web = await serve((req, response, count) => {
      if (count % 4 === 0) return void response.destroy()
      const limit = count % 3 === 0 ? 90_000 : undefined
      sendFile(req, response, bytes, { etag: '"1"' }, limit)
      sent++
    })
    const door = await openQuick(web.url)
    const on = bench()
    const over = await openBundle(door, { trusted: bundle.trusted })
    await install(request(on, { source: door, head: over }))
    expect(await holds(on)).toBe(true)
    expect(armed(on)).toBe(true)
    expect(sent).toBeGreaterThan(3)
  })

  it('stops typed when the server stays away, and goes on with the next install', async () => {
    const bytes = readFileSync(bundle.path)
    let away = false
    const web = await serve((req, response) => {
      if (away) return void response.destroy()
      const large = (req.headers.range ?? '').includes(`-${head.offsets.data.rootfs + bundle.rootfs.length - 1}`)
      if (large) away = true
      sendFile(req, response, bytes, { etag: '"1"' }, large ? 1_500_000 : undefined)
    })
    const door = await openQuick(web.url)
    const on = bench()
    expect(await codeOfAsync(() => install(request(on, { source: door })))).toBe('TRANSPORT_LOST')
    expect(armed(on)).toBe(false)
    const wanted = missing(on)
    expect(wanted).toBeLessThan(missing(bench()) - 1_200_000)
    const { source: from, counted } = watched(source)
    await install(request(on, { source: from }))
    expect(counted.bytes).toBeLessThanOrEqual(wanted + 8 * 1024)
    expect(await holds(on)).toBe(true)
  })
})
