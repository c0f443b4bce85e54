import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { useHashCrew } from '../../base/hash-crew.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { memorySource } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { Machine, ModelDevice } from '../device-install/model.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { EMPTY, type Run, type RunPlan, runInstall } from './bench.ts'
import { DOORS } from './doors.ts'
import { type Fault, Medium } from './medium.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})
// Installs by the hundred: the second thread of the first one serves them all.
afterAll(useHashCrew())

// One set of questions for every door. What an install decides and writes follows from the bundle and the slot alone:
// the journals are compared byte for byte with those of an install from a real file.

const LONG = 60_000
let dir: string
let bundle: TestBundle
let bytes: Buffer
let head: BundleHead
let old: { bundle: TestBundle; head: BundleHead }
/** Another genuine release of the same size. */
let other: Buffer

const ROOTFS = 4096 * 440

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-doors-'))
  const boot = Buffer.concat([Buffer.alloc(200_000, 'kernel '), noise(4096 * 60 - 200_000, 'boot')])
  const rootfs = noise(ROOTFS, 'rootfs')
  bundle = await makeBundle(dir, 'new', { boot, rootfs })
  bytes = readFileSync(bundle.path)
  head = await openBundle(memorySource(bytes), { trusted: bundle.trusted })
  // Differs in every third chunk, so that runs of reuse and of fetching alternate.
  const before = Buffer.from(rootfs)
  for (let at = 0; at < ROOTFS; at += 3 * 128 * 1024) before.fill(7, at, at + 4096)
  const earlier = await makeBundle(dir, 'old', { boot, rootfs: before, number: { epoch: 0, counter: 1 } })
  const opened = await openBundle(memorySource(readFileSync(earlier.path)), { trusted: bundle.trusted })
  old = { bundle: earlier, head: opened }
  other = readFileSync(
    (await makeBundle(dir, 'other', { boot, rootfs: noise(ROOTFS, 'other'), number: { epoch: 0, counter: 3 } })).path,
  )
  expect(other.length).toBe(bytes.length)
  return () => rmSync(dir, { recursive: true, force: true })
})

/** The same install from a real file. */
const fromFile = (plan: Omit<RunPlan, 'trusted'> = {}): Promise<Run> =>
  runInstall(() => openFileDoor(bundle.path), { trusted: bundle.trusted, ...plan })

/** Chunks of the old release, some of which are not what its index says. */
function reuse(): NonNullable<RunPlan['reuse']> {
  const device = (name: 'boot' | 'rootfs', content: Uint8Array) => {
    const medium = Buffer.from(content)
    // A bad place in what is reused: that chunk comes through the door after all.
    if (name === 'rootfs') medium.fill(9, 5 * 128 * 1024, 5 * 128 * 1024 + 10)
    return new ModelDevice(`old ${name}`, medium, new Machine())
  }
  return () => [
    { name: 'boot', index: old.head.indexes.boot, device: device('boot', old.bundle.boot) },
    { name: 'rootfs', index: old.head.indexes.rootfs, device: device('rootfs', old.bundle.rootfs) },
  ]
}

describe.each(DOORS.map((door) => [door.name, door] as const))('the door %s', (_, door) => {
  const through = (medium: Medium, plan: Omit<RunPlan, 'trusted'> = {}, stallMs = LONG): Promise<Run> =>
    runInstall(() => door.open(medium, { stallMs }), { trusted: bundle.trusted, ...plan })
  const honest = (plan: Omit<RunPlan, 'trusted'> = {}) => through(new Medium(bytes), plan)
  const failing = (fault: Fault, stallMs = LONG, content: Uint8Array = bytes) => {
    const medium = new Medium(content)
    medium.fault = fault
    return through(medium, {}, stallMs)
  }

  /** Nothing is armed, and the next install goes on from what is there as any other door would. */
  async function leavesGoodGround(run: Run, code: string | RegExp): Promise<void> {
    expect(run.code).toEqual(typeof code === 'string' ? code : expect.stringMatching(code))
    expect(run.armed).toBe(false)
    const next = await honest({ slots: run.slots })
    expect(next).toMatchObject({ code: 'accepted', armed: true, holds: true })
    expect(next.journal).toBe((await fromFile({ slots: run.slots })).journal)
  }

  it('installs: same decisions, same writes, in the same order', async () => {
    const run = await honest()
    expect(run).toMatchObject({ code: 'accepted', armed: true, holds: true })
    expect(run.journal).toBe((await fromFile()).journal)
    expect(run.journal).toContain('rootfs fetch 0-13')
    expect(run.journal).toMatch(/\narmed\nboot write /)
  })

  it('reuses what the device has, and fetches what turned out to be other than claimed', async () => {
    const run = await honest({ reuse: reuse() })
    expect(run).toMatchObject({ code: 'accepted', armed: true, holds: true })
    expect(run.journal).toBe((await fromFile({ reuse: reuse() })).journal)
    expect(run.journal).toContain('boot reuse 0')
    expect(run.journal.match(/rootfs (reuse|fetch|refetch) [0-9-]+/g)?.slice(0, 4)).toEqual([
      'rootfs fetch 0',
      'rootfs reuse 1-2',
      'rootfs fetch 3',
      'rootfs reuse 4',
    ])
    expect(run.journal).toContain('rootfs refetch 5')
  })

  it('resumes from any chunk, and does nothing where all is there', async () => {
    for (const cancelAfter of [1, 4, 9]) {
      const cut = await honest({ cancelAfter })
      expect(cut).toMatchObject({ code: 'INSTALL_CANCELLED', armed: false })
      expect(cut.journal).toBe((await fromFile({ cancelAfter })).journal)
      await leavesGoodGround(cut, 'INSTALL_CANCELLED')
    }
    const { slots } = await honest()
    const again = await honest({ slots })
    expect(again.journal).toBe((await fromFile({ slots })).journal)
    expect(again.journal).not.toContain('write')
  })

  it('a link that breaks: made again within the install, or left for the next one', async () => {
    const run = await failing({ kind: 'breaks', every: 900_000, times: 2 })
    if (!door.reconnects) return leavesGoodGround(run, door.codes.gone)
    expect(run).toMatchObject({ code: 'accepted', holds: true })
    expect(run.journal).toBe((await fromFile()).journal)
  })

  it('A15 a link that is gone, at any part: typed, and the next install goes on', async () => {
    for (const tenth of [0, 3, 5, 8])
      await leavesGoodGround(
        await failing({ kind: 'gone', after: Math.floor((bytes.length * tenth) / 10) + 100 }),
        door.codes.gone,
      )
  })

  it('a wrong answer: a page, noise, nothing, another file', async () => {
    const page = Buffer.alloc(bytes.length, ' ')
    page.write('<!doctype html><title>Sign in</title>')
    await leavesGoodGround(await failing({ kind: 'none' }, LONG, page), door.codes.page)
    await leavesGoodGround(await failing({ kind: 'none' }, LONG, noise(bytes.length)), 'BUNDLE_NOT_A_BUNDLE')
    await leavesGoodGround(await failing({ kind: 'none' }, LONG, noise(300)), 'BUNDLE_NOT_A_BUNDLE')
    await leavesGoodGround(await failing({ kind: 'none' }, LONG, bytes.subarray(0, 100)), 'BUNDLE_TRUNCATED')
  })

  it('the end of the stream too early', async () => {
    for (const at of [200, 70_000, head.offsets.data.rootfs + 300_000, bytes.length - 1])
      await leavesGoodGround(await failing({ kind: 'ends', at }), door.codes.ends)
    const short = await failing({ kind: 'none' }, LONG, bytes.subarray(0, bytes.length - 512))
    await leavesGoodGround(short, 'BUNDLE_TRUNCATED')
  })

  it('A6 the end of the stream too late, or never: what is too much is not taken', async () => {
    for (const more of [1, 5000, 1e12]) {
      const run = await failing({ kind: 'late', more })
      expect(run).toMatchObject({ code: 'accepted', holds: true })
      expect(run.journal).toBe((await fromFile()).journal)
    }
    const longer = await failing({ kind: 'none' }, LONG, Buffer.concat([bytes, Buffer.alloc(512)]))
    await leavesGoodGround(longer, 'BUNDLE_TRAILING_BYTES')
  })

  it('A16 corrupt: one bit, anywhere', async () => {
    const { data } = head.offsets
    for (const [at, code] of [
      [700, undefined],
      [data.boot + 10, 'BUNDLE_DIGEST'],
      [data.rootfs + 500_000, 'BUNDLE_DIGEST'],
      [data.rootfs - 512, 'BUNDLE_HEADER'],
    ] as const) {
      const run = await failing({ kind: 'flips', at })
      expect(run.code).toMatch(/^[A-Z]+_/)
      await leavesGoodGround(run, code ?? run.code)
    }
  })

  it('A7 slow: nothing more comes and nobody hangs up', async () => {
    for (const at of [300, head.offsets.data.rootfs + 400_000])
      await leavesGoodGround(await failing({ kind: 'stalls', at }, 40), 'TRANSPORT_STALLED')
  })

  it('C1 changed half-way, into another genuine release: refused, never mixed', async () => {
    const after = head.offsets.data.rootfs + 400_000
    const run = await failing({ kind: 'changes', after, to: other })
    await leavesGoodGround(run, run.code === 'BUNDLE_DIGEST' ? 'BUNDLE_DIGEST' : door.codes.changes)
  })
})

describe('the file door over a real file', () => {
  it('a file that is written over, cut or removed while it is read', async () => {
    for (const change of ['over', 'cut', 'gone'] as const) {
      const path = join(dir, `${change}.bundle`)
      writeFileSync(path, bytes)
      const run = await runInstall(
        async () => {
          const door = await openFileDoor(path)
          return {
            ...door,
            async *read(offset, length, options) {
              if (offset === head.offsets.data.rootfs) {
                if (change === 'over') writeFileSync(path, other)
                else if (change === 'cut') writeFileSync(path, bytes.subarray(0, 600_000))
                else rmSync(path, { force: true })
              }
              yield* door.read(offset, length, options)
            },
          }
        },
        { trusted: bundle.trusted, slots: EMPTY },
      )
      expect([change, run.code]).toEqual([
        change,
        { over: 'BUNDLE_DIGEST', cut: 'TRANSPORT_FILE_FAILED', gone: 'accepted' }[change],
      ])
      expect(run.armed).toBe(change === 'gone')
    }
  })
})
