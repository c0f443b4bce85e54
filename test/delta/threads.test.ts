import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { UnitReader } from '../../bundle/delta/apply.ts'
import { type DeltaHead, type DeltaUnit, readDeltaHead } from '../../bundle/delta/head.ts'
import { openOldImage } from '../../bundle/delta/old.ts'
import { sha256 } from '../../bundle/digest.ts'
import { compressBlock } from '../../bundle/squashfs/block-codec.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { PatchedChunks } from '../../device/install/patch.ts'
import { type MadeDelta, makeDelta } from '../../publisher/delta/make.ts'
import { type Made, release } from './kit.ts'

// Blocks are rebuilt beside: on any number of threads, in whatever order they are ready, the same chunks; and no more at a
// time than is bounded.

let dir: string
let first: Made
let second: Made
let path: string
let head: DeltaHead
let made: MadeDelta

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'bistable-threads-'))
  first = await release(dir, 1)
  second = await release(dir, 2)
  path = join(dir, 'a.delta')
  made = await makeDelta(first, second, path, { say: () => undefined })
  const source = await openFileDoor(path)
  head = await readDeltaHead(source)
  await source.close()
  return async () => {
    await first.source.close()
    await second.source.close()
    rmSync(dir, { recursive: true, force: true })
  }
})

const index = () => second.head.indexes.rootfs
const units = (): readonly DeltaUnit[] => head.units.filter(({ image }) => image === 'rootfs')
const covered = (): number[] =>
  units().flatMap(({ runs }) => runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, n) => first + n)))

/** All chunks of the units, as a device takes them. */
async function take(level: number, threads: number, lacking = (_: number) => true) {
  const source = await openFileDoor(path)
  const refused: string[] = []
  const read = async (offset: number, into: Uint8Array) =>
    void into.set(first.bundle.rootfs.subarray(offset, offset + into.length))
  const place = { device: { read }, length: first.bundle.rootfs.length }
  const patch = {
    ...{ source, head: { ...head, level }, from: { boot: place, rootfs: place } },
    onRefused: (error: Error) => void refused.push(isBistableError(error) ? error.code : String(error)),
  }
  const parts = { index: index(), units: units(), lacking, signal: undefined, onFetched: () => undefined, threads }
  const chunks = new PatchedChunks(patch, 'rootfs', parts)
  const got = new Map<number, Uint8Array | undefined>()
  try {
    for (const n of covered()) if (lacking(n)) got.set(n, await chunks.take(n))
  } finally {
    await chunks.close()
    await source.close()
  }
  return { got, refused }
}

describe('rebuilding in threads', () => {
  it('gives every chunk as signed, on the one thread and beside it, all of them or some', async () => {
    const some = (n: number): boolean => n % 3 !== 1
    for (const [threads, lacking] of [
      [0, () => true],
      [2, () => true],
      [2, some],
    ] as const) {
      const { got, refused } = await take(head.level, threads, lacking)
      expect(refused).toEqual([])
      for (const [n, chunk] of got) expect(chunk && sha256(chunk), `chunk ${n}`).toBe(index().chunks[n]?.digest)
    }
  })

  it('a thread that fails: the patch is given up by name, and nothing is left waiting', async () => {
    const { got, refused } = await take(99, 2)
    expect(refused).toEqual(['DELTA_THREAD'])
    // The superblock, chunk 0, is never compressed.
    expect([...got].filter(([n, chunk]) => n > 0 && chunk !== undefined)).toEqual([])
  })

  it('compresses what changed and nothing else, at most 2 MiB and a block at a time, and takes answers in any order', async () => {
    const unit = units()[0] as DeltaUnit
    const stored = readFileSync(path).subarray(unit.offset, unit.offset + unit.stored)
    const old = await openOldImage(
      { read: async (at, n) => first.bundle.rootfs.subarray(at, at + n) },
      first.bundle.rootfs.length,
    )
    const had = new Set<string>()
    for (let n = 0; n < old.extents.count; n++) had.add(sha256(await old.stored(n)))
    let held = 0
    let most = 0
    let late = 0
    let packedBytes = 0
    const numbers = unit.runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, n) => first + n))
    const chunks = numbers.map((n) => ({ length: index().chunks[n]?.length ?? 0, wanted: true }))
    const pack = async (content: Uint8Array<ArrayBuffer>) => {
      held += content.length
      packedBytes += content.length
      most = Math.max(most, held)
      // Every second one is ready long after those behind it.
      if (late++ % 2 === 0) await new Promise((resolve) => setTimeout(resolve, 5))
      held -= content.length
      const packed = compressBlock(content, head.level)
      // A block of data as it stood in the old image would have been copied.
      expect(had.has(sha256(packed.bytes))).toBe(false)
      return packed
    }
    const compressor = { pack, memory: (length: number) => new Uint8Array(length).fill(0xee) }
    const reader = UnitReader.open(stored, { old, codec: head, chunks, compressor })
    for (const n of numbers) expect(sha256((await reader.next()) ?? Buffer.alloc(0))).toBe(index().chunks[n]?.digest)
    expect(late).toBeGreaterThan(4)
    expect(most).toBeGreaterThan(head.blockSize)
    expect(most).toBeLessThanOrEqual(2 * 1024 * 1024 + head.blockSize)
    await expect(reader.next()).rejects.toMatchObject({ code: 'DELTA_INVALID' })
    // The publisher said so beforehand; the boot image is no SquashFS image.
    expect(units()).toHaveLength(1)
    expect(made.packed).toBe(packedBytes)
  })
})
