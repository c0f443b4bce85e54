import { strict as assert } from 'node:assert'
import type { Sha256 } from '../../../base/bytes.ts'
import { isBistableError } from '../../../base/errors.ts'
import { type Compressor, PIECE, UnitReader } from '../../../bundle/delta/apply.ts'
import { encodeDeltaHead, readDeltaHead } from '../../../bundle/delta/head.ts'
import { type OldImage, openOldImage } from '../../../bundle/delta/old.ts'
import { indexFrom, packSide } from '../../../bundle/delta/sides.ts'
import { packStreams, STREAMS, type StreamName } from '../../../bundle/delta/streams.ts'
import { VarintWriter } from '../../../bundle/delta/varint.ts'
import { sha256 } from '../../../bundle/digest.ts'
import { compressBlock } from '../../../bundle/squashfs/block-codec.ts'
import type { ImageEntry } from '../../../bundle/types.ts'
import { indexes, squashfs } from './seeds.ts'
import { sourceOf } from './signed.ts'

/** Patches: the head, a unit, a side, and the image that one starts from. */

type Seeds = () => Promise<readonly Uint8Array[]>

const readerOf = (bytes: Uint8Array) => ({
  read: async (offset: number, length: number) => {
    if (offset < 0 || offset + length > bytes.length) throw new RangeError(`read of ${offset}+${length}`)
    return Uint8Array.from(bytes.subarray(offset, offset + length))
  },
})

const SHA = 'cd'.repeat(32) as Sha256
const none = new Uint8Array(0)
const unitEntry = (runs: { first: number; count: number }[], stored: number) => ({
  image: 'rootfs' as const,
  ...{ runs, stored, sha256: SHA },
})

export const deltaHeads: Seeds = async () => {
  const head = { from: SHA, to: 'ef'.repeat(32) as Sha256, library: 'zstd 1.5.7', level: 15, blockSize: 131_072 }
  const sides = { boot: Buffer.from('boot side'), rootfs: none, inventory: Buffer.alloc(50, 'i') }
  const units = [
    unitEntry([{ first: 0, count: 3 }], 10),
    unitEntry(
      [
        { first: 5, count: 1 },
        { first: 9, count: 2 },
      ],
      7,
    ),
  ]
  return [
    Buffer.concat([encodeDeltaHead({ ...head, sides }, units), Buffer.alloc(17, 'unit')]),
    encodeDeltaHead({ ...head, sides: { boot: none, rootfs: none, inventory: none } }, []),
  ]
}

/** What was read can be written, byte for byte. */
export async function fuzzDeltaHead(bytes: Uint8Array): Promise<void> {
  const head = await readDeltaHead(sourceOf(bytes))
  assert.equal(Buffer.compare(encodeDeltaHead(head, head.units), bytes.subarray(0, head.length)), 0)
}

/** Every extent has as many bytes as it says, together they are the image, and no content is longer than its stride. */
export async function fuzzOldImage(bytes: Uint8Array): Promise<void> {
  const old = await openOldImage(readerOf(bytes), bytes.length, { names: true })
  const { extents } = old
  assert.equal(extents.end, bytes.length)
  let end = 0
  for (let index = 0; index < extents.count; index++) {
    const { at, length } = extents.get(index)
    assert.equal(at, end)
    assert.equal(extents.find(at), index)
    end += length
    assert.equal((await old.stored(index)).length, length)
    try {
      assert.equal((await old.content(index)).length, extents.stride(index))
    } catch (error) {
      if (!isBistableError(error)) throw error
    }
  }
  assert.equal(end, bytes.length)
}

const BLOCK = 4096
const CHUNKS = [
  { length: 700, wanted: true },
  { length: 20_000, wanted: false },
  { length: BLOCK, wanted: true },
  { length: 300, wanted: true },
]
const compressor: Compressor = {
  pack: async (content) => compressBlock(content, 1),
  memory: (length) => new Uint8Array(length),
}
let opened: Promise<OldImage> | undefined
const oldImage = (): Promise<OldImage> => {
  opened ??= squashfs().then(([image = none]) => openOldImage(readerOf(image), image.length))
  return opened
}

export const deltaUnits: Seeds = async () => {
  const written = Object.fromEntries(STREAMS.map((name) => [name, new VarintWriter()]))
  const put = (name: StreamName, ...values: number[]) => {
    for (const value of values) written[name]?.put(value)
  }
  put('window', 0, 3)
  put('chunks', 2 * 2 + 1, 1 * 2, 1 * 2 + 1, 1)
  put('pieces', 2 * 4 + PIECE.copy)
  written['pieces']?.putSigned(0)
  put('pieces', 100 * 4 + PIECE.raw, PIECE.data, 500 * 4 + PIECE.meta)
  for (const seek of [0, 5]) written['seeks']?.putSigned(seek)
  put('copies', 96, 4000)
  put('inserts', 4, 596)
  const streams = Object.fromEntries(STREAMS.map((name) => [name, written[name]?.finish() ?? none]))
  const unit = { ...streams, diff: Buffer.alloc(4096), extra: Buffer.alloc(600, 'extra') }
  return [packStreams(unit as unknown as Parameters<typeof packStreams>[0])]
}

/** A chunk comes out as long as it is to be, or not at all. */
export async function fuzzDeltaUnit(bytes: Uint8Array): Promise<void> {
  const codec = { level: 1, blockSize: BLOCK }
  const reader = UnitReader.open(bytes, { old: await oldImage(), codec, chunks: CHUNKS, compressor })
  for (const { length, wanted } of CHUNKS) {
    const chunk = await reader.next()
    if (chunk === undefined) continue
    assert.ok(wanted)
    assert.equal(chunk.length, length)
  }
}

export const deltaSides: Seeds = async () => {
  const [old = none, next = none] = await indexes()
  return [packSide(next, old, 1 << 20)]
}

/** The signed index, or a refusal. */
export async function fuzzDeltaSide(bytes: Uint8Array): Promise<void> {
  const [old = none, next = none] = await indexes()
  const entry = { index: { length: next.length, sha256: sha256(next) } } as ImageEntry
  assert.equal(Buffer.compare(indexFrom(bytes, old, entry), next), 0)
}
