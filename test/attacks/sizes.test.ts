import { expect, test } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { dataName } from '../../bundle/layout.ts'
import { openBundle } from '../../bundle/reader.ts'
import { checkStored, readChunks } from '../../bundle/stored.ts'
import { TAR_END, tarHeader } from '../../bundle/tar.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import type { Chunk } from '../../bundle/types.ts'
import { checkFraming, verifyBundle } from '../../bundle/verify.ts'
import { trustAnchor } from '../../keys/root.ts'
import { signedRoot } from '../keys/helpers.ts'
import { frame, headParts, type Image, imageOf } from './container.ts'
import { attempt, countRefusals, refused, WHOLE } from './refused.ts'

// Sizes around 2^31, 2^32 and 8^11, where other updaters lost count: RAUC signed only the start of a bundle over 2 GiB.
// The bundles are sparse: image data is zeros that exist only when they are read.

const MiB = 1 << 20
const CHUNK = new Uint8Array(MiB)
const ZERO_CHUNK = sha256(CHUNK)

/** The root of an image of zeros, from one block: all nodes of a level but the last are equal. */
function zeroRoot(length: number): Sha256 {
  let count = length / 4096
  let node = Buffer.from(sha256(CHUNK.subarray(0, 4096)), 'hex')
  let last = node
  while (count > 1) {
    const full = sha256(Buffer.concat(Array.from({ length: 128 }, () => node)))
    const rest = count % 128 === 0 ? 128 : count % 128
    const tail = Buffer.alloc(4096)
    for (let i = 0; i < rest; i++) (i === rest - 1 ? last : node).copy(tail, i * 32)
    node = Buffer.from(full, 'hex')
    last = Buffer.from(sha256(tail), 'hex')
    count = Math.ceil(count / 128)
  }
  return last.toString('hex') as Sha256
}

/** Zeros, raw, in chunks of 1 MiB. */
function zeroImage(imageLength: number): Image {
  const chunks: Chunk[] = []
  for (let offset = 0; offset < imageLength; offset += MiB) {
    const length = Math.min(MiB, imageLength - offset)
    const digest = length === MiB ? ZERO_CHUNK : sha256(CHUNK.subarray(0, length))
    chunks.push({
      digest,
      offset,
      length,
      encoding: 'raw',
      storedOffset: offset,
      storedLength: length,
      storedDigest: digest,
    })
  }
  return { index: { imageLength, chunks }, root: zeroRoot(imageLength), data: new Uint8Array(0) }
}

/** Few bytes and a hole of zeros. `size` and `flip` (one bit at an offset) are the attacker's. */
function sparse(start: Uint8Array, total: number, lie: { size?: number; flip?: number } = {}): ByteSource {
  return {
    name: 'sparse',
    size: lie.size ?? total,
    async *read(offset, length) {
      for (let at = offset; at < offset + length; ) {
        const most = Math.min(MiB, offset + length - at)
        const piece = new Uint8Array(at < start.length ? Math.min(most, start.length - at) : most)
        if (at < start.length) piece.set(start.subarray(at, at + piece.length))
        const hit = (lie.flip ?? -1) - at
        if (hit >= 0 && hit < piece.length) piece[hit] = (piece[hit] ?? 0) ^ 1
        yield piece
        at += piece.length
      }
    },
    close: async () => undefined,
  }
}

const boot = imageOf(new Uint8Array(8192).fill(7))
const root = await signedRoot({}, [1, 2])
const trust = { trusted: trustAnchor(root) }

async function sparseBundle(length: number, more: Record<string, unknown> = {}) {
  const images = { boot, rootfs: zeroImage(length) }
  const head = await headParts(images, [root], { more })
  const front = frame([...head, { name: dataName('boot'), content: boot.data }])
  const start = Buffer.concat([front.subarray(0, -TAR_END), tarHeader(dataName('rootfs'), length)])
  return { start, dataAt: start.length, total: start.length + length + TAR_END }
}

const LENGTHS = [
  2 ** 31 - 4096,
  2 ** 31,
  2 ** 31 + 4096,
  2 ** 32 - 4096,
  2 ** 32,
  2 ** 32 + 4096,
  8 ** 11 - 4096,
  8 ** 11,
  8 ** 11 + 4096,
]

test('the shortcut for roots of zeros gives what the tree gives', () => {
  for (const blocks of [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1, 3 * 128 * 128 + 5]) {
    const tree = createTreeHasher({ onPage: () => undefined })
    for (let at = 0; at < blocks; at += 256) tree.update(CHUNK.subarray(0, Math.min(256, blocks - at) * 4096))
    expect(zeroRoot(blocks * 4096)).toBe(tree.finish().root)
  }
})

test.each(LENGTHS)('A24 large sizes: an image of %d bytes is covered to its last byte', async (length) => {
  const { start, dataAt, total } = await sparseBundle(length)
  const head = await openBundle(sparse(start, total), trust)
  expect(head.size).toBe(total)
  await checkFraming(sparse(start, total), head)

  // A file that is shorter or longer, also by what a 31 or 32 bit count would lose.
  const wrong = [
    total - 1,
    total + 1,
    total - 512,
    total + 4096,
    dataAt,
    dataAt + length,
    total % 2 ** 31,
    total % 2 ** 32,
  ]
  for (const size of [...wrong, total - 2 ** 31, total - 2 ** 32, total + 2 ** 31, total + 2 ** 32]) {
    if (size <= 0 || size === total) continue
    const code = await attempt(() => openBundle(sparse(start, total, { size }), trust))
    refused(`${size} bytes`, code, size < total ? 'BUNDLE_TRUNCATED' : 'BUNDLE_TRAILING_BYTES')
  }
  // One bit in the framing behind the data.
  for (const flip of [dataAt + length, total - 1, dataAt - 300])
    refused(
      `bit at ${flip}`,
      await attempt(() => checkFraming(sparse(start, total, { flip }), head)),
      'BUNDLE_PADDING',
      'BUNDLE_HEADER',
    )
  // One bit in the chunks at both sides of every edge of the image, and of the file.
  const edges = [0, 2 ** 31, 2 ** 32, 8 ** 11].flatMap((edge) => [edge - 1, edge, edge - dataAt - 1, edge - dataAt])
  for (const at of new Set([...edges, length - 1, length / 2])) {
    if (at < 0 || at >= length) continue
    const chunk = head.indexes.rootfs.chunks.find((one) => at >= one.offset && at < one.offset + one.length)
    if (chunk === undefined) throw new Error(`no chunk at ${at}`)
    const first = async (source: ByteSource) => {
      for await (const [one, stored] of readChunks(source, head.offsets.data.rootfs, [chunk])) checkStored(one, stored)
    }
    await first(sparse(start, total))
    refused(
      `bit ${at} of the image`,
      await attempt(() => first(sparse(start, total, { flip: dataAt + at }))),
      'BUNDLE_DIGEST',
    )
  }
})

test('A24 large sizes: statements that count wrong, signed all the same', async () => {
  const images = { boot, rootfs: zeroImage(2 ** 32 + 4096) }
  const parts = await headParts(images, [root])
  const release = JSON.parse(
    Buffer.from(JSON.parse(Buffer.from(parts[2]?.content ?? []).toString()).payload, 'base64').toString(),
  ) as { images: { name: string; length: number; data: { length: number } }[] }
  const lengths: [number | string, number | string][] = [
    [2 ** 31 - 1, 2 ** 31 - 1],
    [2 ** 32 - 1, 2 ** 32 - 1],
    [4096, 4096],
    [2 ** 32, 2 ** 32 + 4096],
    [2 ** 32 + 4096, 4096],
    [2 ** 32 + 4096, 2 ** 32],
    [2 ** 32 + 8192, 2 ** 32 + 4096],
    [-4096, 4096],
    [0, 0],
    [4096.5, 4096],
    ['4294971392', 4096],
    [Number.MAX_SAFE_INTEGER - 4095, 4096],
    [2 ** 60, 2 ** 60],
  ]
  for (const [length, data] of lengths) {
    const lying = release.images.map((image) =>
      image.name === 'boot' ? image : { ...image, length, data: { length: data } },
    )
    const front = frame(await headParts(images, [root], { more: { images: lying } })).subarray(0, -TAR_END)
    const wanted = [
      'RELEASE_INVALID',
      'BUNDLE_INDEX_INVALID',
      'BUNDLE_TRUNCATED',
      'BUNDLE_TRAILING_BYTES',
      'JSON_INVALID',
    ]
    // Whatever size the file has: as the statement says, as the images need, or in between.
    for (const size of [2 ** 32, 2 ** 33, front.length + 4096 * 4]) {
      const source = sparse(front, Math.max(size, front.length + 8192))
      refused(`length ${length}, data ${data}`, await attempt(() => openBundle(source, trust)), ...wanted)
    }
  }
})

if (WHOLE)
  test('A24 large sizes: the whole of 2^31 + 4096 bytes is read, and one bit behind 2^31 is found', async () => {
    const length = 2 ** 31 + 4096
    const { start, dataAt, total } = await sparseBundle(length)
    expect((await verifyBundle(sparse(start, total), trust)).size).toBe(total)
    const flip = dataAt + 2 ** 31 + 1
    refused(
      'a bit behind 2^31',
      await attempt(() => verifyBundle(sparse(start, total, { flip }), trust)),
      'BUNDLE_DIGEST',
    )
  })

test('A24 truncation: a bundle cut at every member, block and bit of framing', async () => {
  const images = { boot, rootfs: imageOf(new Uint8Array(5 * 8192).map((_, i) => i % 251)) }
  const front = await headParts(images, [root])
  const bytes = frame([
    ...front,
    { name: dataName('boot'), content: images.boot.data },
    { name: dataName('rootfs'), content: images.rootfs.data },
  ])
  await verifyBundle(sparse(bytes, bytes.length), trust)
  const marks = Array.from({ length: bytes.length / 512 }, (_, i) => i * 512)
  const cuts = WHOLE
    ? Array.from(bytes.keys()).filter((at) => at % 37 === 0 || at % 512 < 2)
    : marks.flatMap((at) => [at, at + 1, at + 511])
  for (const cut of cuts) {
    const code = await attempt(() => verifyBundle(sparse(bytes.subarray(0, cut), cut), trust))
    if (code !== 'BUNDLE_TRUNCATED' && code !== 'BUNDLE_NOT_A_BUNDLE') expect.fail(`cut at ${cut}: ${code}`)
  }
  expect(cuts.length).toBeGreaterThan(300)
  countRefusals(cuts.length)
})
