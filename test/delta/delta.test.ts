import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { PIECE, UnitReader } from '../../bundle/delta/apply.ts'
import { type DeltaUnit, encodeDeltaHead, readDeltaHead } from '../../bundle/delta/head.ts'
import type { OldImage } from '../../bundle/delta/old.ts'
import { packStreams, STREAMS, type Streams, unpackStreams } from '../../bundle/delta/streams.ts'
import { VarintWriter } from '../../bundle/delta/varint.ts'
import { sha256 } from '../../bundle/digest.ts'
import { Extents } from '../../bundle/squashfs/extents.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { install, previewInstall } from '../../device/install/install.ts'
import { checkPatch, type Patch } from '../../device/install/patch.ts'
import type { InstallRequest, ReuseSource } from '../../device/install/types.ts'
import { makeDelta } from '../../publisher/delta/make.ts'
import { codeOfAsync } from '../codes.ts'
import { Machine, PowerCut, randomFrom } from '../device-install/model.ts'
import { countingDoor } from '../helpers/counting.ts'
import { changed, type Made, release, slots } from './kit.ts'

// Patches between two releases of the publisher's own writer: small, exact, and never more than a way to save bytes.

const quiet = { say: () => undefined }
const nothing = async (): Promise<void> => undefined
const steps = { invalidate: nothing, beforeArm: nothing, arm: nothing }
let dir: string
let first: Made
let second: Made
let path: string

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-delta-'))
  first = await release(dir, 1)
  second = await release(dir, 2)
  path = join(dir, 'a.delta')
  await makeDelta(first, second, path, quiet)
  return async () => {
    await first.source.close()
    await second.source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

/** Where the running system is: its slots, as places to reuse and as what a patch starts from. */
function running(made = first) {
  const from = slots(made)
  const reuse: ReuseSource[] = (['boot', 'rootfs'] as const).map((name) => ({
    name: `old ${name}`,
    index: made.head.indexes[name],
    device: from[name],
  }))
  const place = (name: 'boot' | 'rootfs') => ({ device: from[name], length: made.bundle[name].length })
  return { reuse, from: { boot: place('boot'), rootfs: place('rootfs') } }
}

interface Tried {
  readonly fetched: number
  readonly refused: readonly string[]
  readonly journal: readonly string[]
  /** Bytes that were read of the patch. */
  readonly read: number
}

/** Installs with a patch file as a device does, into empty slots, and holds the result to the release. */
async function tryPatch(file: string, extra: Partial<InstallRequest> = {}): Promise<Tried> {
  const refused: string[] = []
  const onRefused = (error: Error) => void refused.push(isBistableError(error) ? error.code : String(error))
  const { source, counted } = await countingDoor(file)
  const { reuse, from } = running()
  const slot = slots()
  const journal: string[] = []
  let patch: Patch | undefined
  try {
    const head = await readDeltaHead(source)
    checkPatch(head, first.head.digest, second.head)
    patch = { source, head, from, onRefused }
  } catch (error) {
    onRefused(error as Error)
  }
  const note = (line: string) => void journal.push(line)
  const given = patch === undefined ? {} : { patch }
  const request = { ...second, slot, reuse, ...steps, journal: note, ...given, ...extra }
  const result = await install(request).finally(() => source.close())
  expect(slot.rootfs.medium.subarray(0, second.bundle.rootfs.length).equals(second.bundle.rootfs)).toBe(true)
  expect(slot.boot.medium.subarray(0, second.bundle.boot.length).equals(second.bundle.boot)).toBe(true)
  return { fetched: result.fetched, refused, journal, read: counted.bytes }
}

const chunkBytes = async (): Promise<number> => {
  const { reuse } = running()
  const { images } = await previewInstall({ ...second, slot: slots(), reuse })
  return images.reduce((sum, { fetched }) => sum + fetched.stored, 0)
}

describe('a patch', () => {
  it('rebuilds every changed block of the root file system, for a fraction of the bytes of chunks', async () => {
    const { fetched, refused, journal } = await tryPatch(path)
    expect(refused).toEqual([])
    expect(journal.filter((line) => line.startsWith('rootfs fetch'))).toEqual([])
    expect(journal.some((line) => line.startsWith('rootfs patch'))).toBe(true)
    // What is new for certain: 30,000 bytes of noise in a file, 16,384 in the boot image.
    expect(fetched).toBeGreaterThan(46_000)
    expect(fetched).toBeLessThan(80_000)
    expect(await chunkBytes()).toBeGreaterThan(4 * fetched)
  })

  it('is planned before it is fetched, and counts against the budget', async () => {
    const source = await openFileDoor(path)
    const head = await readDeltaHead(source)
    const { reuse, from } = running()
    const patch = { source, head, from, onRefused: () => undefined }
    const plan = await previewInstall({ ...second, slot: slots(), reuse, patch })
    const { fetched } = await tryPatch(path)
    expect(plan.total).toBe(plan.head + plan.attachments + plan.patch + fetched)
    expect(plan.images[1]?.patched.bytes).toBeGreaterThan(100_000)
    await tryPatch(path, { maxBytes: plan.total })
    expect(await codeOfAsync(() => tryPatch(path, { maxBytes: plan.total - 1 }))).toBe('INSTALL_BUDGET')
    await source.close()
  })

  it('comes out the same each time it is made', async () => {
    const again = join(dir, 'again.delta')
    await makeDelta(first, second, again, quiet)
    expect(readFileSync(again).equals(readFileSync(path))).toBe(true)
  })

  it('is refused between releases that nobody moves between', async () => {
    expect(await codeOfAsync(() => makeDelta(first, first, join(dir, 'same.delta'), quiet))).toBe('DELTA_RELEASES')
  })

  it('goes on after cuts at random moments, with no byte fetched that is there', async () => {
    const random = randomFrom(11)
    const source = await openFileDoor(path)
    const head = await readDeltaHead(source)
    for (let round = 0; round < 6; round++) {
      const { reuse, from } = running()
      let on = { machine: new Machine(), slot: slots() }
      on = { machine: on.machine, slot: slots(undefined, on.machine) }
      on.machine.operationsLeft = 1 + Math.floor(random() * 6)
      const request = () => ({ ...second, slot: on.slot, reuse, ...steps, now: () => 0 })
      const patch = { source, head, from, onRefused: () => undefined }
      await expect(install({ ...request(), patch })).rejects.toThrow(PowerCut)
      const machine = new Machine()
      const { boot, rootfs } = on.slot
      on = { machine, slot: { boot: boot.afterCut(random, machine), rootfs: rootfs.afterCut(random, machine) } }
      const plan = await previewInstall({ ...request(), patch })
      const result = await install({ ...request(), patch })
      expect(result.fetched).toBe(plan.total - plan.head - plan.attachments - plan.patch)
      expect(on.slot.rootfs.medium.subarray(0, second.bundle.rootfs.length).equals(second.bundle.rootfs)).toBe(true)
    }
    await source.close()
  })
})

describe('a patch that is not what it should be', () => {
  const whole = (): Buffer => readFileSync(path)

  it('of other releases, by another compressor, or cut short: refused by name, and chunks come instead', async () => {
    const chunks = await chunkBytes()
    const cases: readonly [string, (bytes: Buffer) => undefined | Buffer, string][] = [
      ['from', (bytes) => void bytes.fill(7, 16, 48), 'DELTA_WRONG_RELEASE'],
      ['to', (bytes) => void bytes.fill(7, 48, 80), 'DELTA_WRONG_RELEASE'],
      ['library', (bytes) => void bytes.write('zstd 1.4.0', 80, 'latin1'), 'DELTA_CODEC'],
      ['short', (bytes) => bytes.subarray(0, -1), 'DELTA_INVALID'],
      ['long', (bytes) => Buffer.concat([bytes, Buffer.alloc(1)]), 'DELTA_INVALID'],
      ['page', () => Buffer.from('<!doctype html>'.repeat(20)), 'DELTA_INVALID'],
      ['units', (bytes) => void bytes.writeUInt32LE(0xffffffff, 12), 'DELTA_INVALID'],
      ['unit', (bytes) => void bytes.writeUInt8((bytes.at(-9) ?? 0) ^ 1, bytes.length - 9), 'DELTA_DIGEST'],
    ]
    for (const [name, change, code] of cases) {
      const { refused, fetched, journal } = await tryPatch(changed(dir, `${name}.delta`, whole(), change))
      expect(refused, name).toEqual([code])
      // A damaged unit spoils what comes from there on; those before it have served.
      expect(fetched, name).toBeGreaterThanOrEqual(name === 'unit' ? chunks / 2 : chunks)
      expect(journal.at(-1), name).toBe('armed')
    }
  })

  it('with a head that the channel announced otherwise: refused before its units', async () => {
    const source = await openFileDoor(path)
    const { length } = await readDeltaHead(source)
    const sha256 = first.head.digest
    expect(await codeOfAsync(() => readDeltaHead(source, { length, sha256 }))).toBe('DELTA_DIGEST')
    expect(await codeOfAsync(() => readDeltaHead(source, { length: length + 1, sha256 }))).toBe('DELTA_DIGEST')
    await source.close()
  })

  it('whose compressor gives other bytes: each block is noticed, and the signed root is reached', async () => {
    // The level says what the blocks are rebuilt with: another one stands for another version of the library.
    const other = changed(dir, 'level.delta', whole(), (bytes) => void bytes.writeUInt32LE(1, 104))
    const { refused, journal } = await tryPatch(other)
    expect(refused).toEqual([])
    expect(journal.some((line) => line.startsWith('rootfs refetch'))).toBe(true)
    expect(journal.at(-1)).toBe('armed')
  })

  it('that someone wrote with care, every digest of his own right: never more than chunks fetched again', async () => {
    const seed = Number(process.env['BISTABLE_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
    console.log(`hostile patches: BISTABLE_SEED=${seed}`)
    const random = randomFrom(seed)
    const source = await openFileDoor(path)
    const head = await readDeltaHead(source)
    const bytes = whole()
    const units = head.units.map((unit) => unpackStreams(bytes.subarray(unit.offset, unit.offset + unit.stored)))
    const seen = new Set<string>()
    for (let round = 0; round < 6; round++) {
      const forged = units.map((streams) => {
        const name = STREAMS[Math.floor(random() * STREAMS.length)] ?? 'diff'
        const stream = Buffer.from(streams[name])
        for (let n = 0; n < 1 + (round % 4); n++)
          stream[Math.floor(random() * stream.length)] = Math.floor(random() * 256)
        return packStreams({ ...streams, [name]: random() < 0.2 ? stream.subarray(0, stream.length / 2) : stream })
      })
      const planned = forged.map((stored, n) => {
        const { image, runs } = head.units[n] as DeltaUnit
        return { image, runs, stored: stored.length, sha256: sha256(stored) }
      })
      const file = changed(dir, 'forged.delta', bytes, () => Buffer.concat([encodeDeltaHead(head, planned), ...forged]))
      const { refused, journal } = await tryPatch(file)
      for (const code of refused) seen.add(code)
      expect(journal.at(-1)).toBe('armed')
    }
    for (const code of seen) expect(code).toMatch(/^(DELTA_INVALID|SQUASHFS_CORRUPT)$/)
    await source.close()
  })

  it('that names pieces by the milliard for a chunk that nobody wants: it is past at once', async () => {
    const extents = new Extents(4096)
    for (let n = 0; n < 1 << 20; n++) extents.add(1, 'raw')
    const none = async (): Promise<Uint8Array> => new Uint8Array(0)
    const old: OldImage = { extents, squashfs: undefined, content: none, exact: none, stored: none, unpacked: 0 }
    const [chunks, pieces] = [new VarintWriter(), new VarintWriter()]
    chunks.put(65_535 * 2 + 1)
    for (let n = 0; n < 65_536; n++) {
      pieces.put((1 << 20) * 4 + PIECE.copy)
      pieces.putSigned(n === 0 ? 0 : -(1 << 20))
    }
    const empty = Object.fromEntries(STREAMS.map((name) => [name, new Uint8Array(0)])) as unknown as Streams
    const unit = packStreams({ ...empty, chunks: chunks.finish(), pieces: pieces.finish() })
    expect(unit.length).toBeLessThan(1024)
    const reader = UnitReader.open(unit, {
      ...{ old, codec: { level: 1, blockSize: 4096 }, chunks: [{ length: 4096, wanted: false }] },
      compressor: { pack: () => Promise.reject(new Error('nothing to pack')), memory: (n) => new Uint8Array(n) },
    })
    expect(await reader.next()).toBeUndefined()
  })

  it('whose unit promises more than may be unpacked: refused before it is', () => {
    const sizes = new VarintWriter()
    for (const _ of STREAMS) for (const size of [16 * 1024 * 1024, 20]) sizes.put(size)
    const head = sizes.finish()
    const bomb = Buffer.concat([Uint8Array.of(head.length), head, Buffer.alloc(200)])
    expect(() => unpackStreams(bomb)).toThrow(expect.objectContaining({ code: 'DELTA_INVALID' }))
    expect(() => unpackStreams(new Uint8Array(0))).toThrow(expect.objectContaining({ code: 'DELTA_INVALID' }))
  })
})
