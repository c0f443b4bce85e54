import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { buildImagePath, finishBuild, openBuild } from '../../bundle/build.ts'
import { packImage } from '../../bundle/pack.ts'
import { unpackChunk } from '../../bundle/stored.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import type { BundleParts } from '../../bundle/writer.ts'
import { writeBundle } from '../../bundle/writer.ts'
import { makeBundle, makeParts, RELEASE } from './fixture.ts'
import { noise, scratch } from './tools.ts'

const refusal = (code: string) => expect.objectContaining({ name: 'BistableError', code })

test('same input, same bytes, in another folder at another time', async () => {
  const one = await makeBundle()
  const two = await makeBundle()
  expect(one.dir).not.toBe(two.dir)
  expect(one.bytes.equals(two.bytes)).toBe(true)
})

test('data may come as a stream, in any pieces', async () => {
  const made = await makeBundle()
  const streamed = made.parts.images.map((image) => ({
    ...image,
    data: (async function* () {
      const bytes = readFileSync(String(image.data))
      for (let at = 0; at < bytes.length; at += 999) yield bytes.subarray(at, at + 999)
    })(),
  }))
  const out = join(made.dir, 'streamed.bundle')
  const { size, digest } = await writeBundle({ ...made.parts, images: streamed }, out)
  expect(readFileSync(out).equals(made.bytes)).toBe(true)
  expect(size).toBe(made.bytes.length)
  expect(digest).toMatch(/^[0-9a-f]{64}$/)
})

test('parts that are not those of the statement: refused, and no file appears', async () => {
  const { dir, parts } = await makeParts()
  const out = join(dir, 'out.bundle')
  const [boot, rootfs] = parts.images
  const [inventory] = parts.attachments
  if (boot === undefined || rootfs === undefined || inventory === undefined) throw new Error('fixture')
  const flip = (bytes: Uint8Array) => bytes.map((byte, i) => (i === 20 ? byte ^ 1 : byte))
  const rejects = async (changes: Partial<BundleParts>, code: string) => {
    await expect(writeBundle({ ...parts, ...changes }, out)).rejects.toEqual(refusal(code))
    expect(readdirSync(dir)).toEqual(['demo.build'])
  }
  await rejects({ images: [boot] }, 'BUNDLE_PARTS')
  await rejects({ images: [rootfs, boot] }, 'BUNDLE_PARTS')
  await rejects({ attachments: [] }, 'BUNDLE_PARTS')
  await rejects({ images: [{ ...boot, indexBytes: flip(boot.indexBytes) }, rootfs] }, 'BUNDLE_PARTS')
  await rejects({ attachments: [{ ...inventory, stored: flip(inventory.stored) }] }, 'BUNDLE_PARTS')
  await rejects({ envelope: flip(parts.envelope) }, 'SIGNATURE_UNKNOWN')
  const data = async function* (bytes: Uint8Array) {
    yield bytes
  }
  const good = readFileSync(String(rootfs.data))
  for (const bytes of [flip(good), good.subarray(1), good.subarray(0, -1), Buffer.concat([good, good])])
    await rejects({ images: [boot, { ...rootfs, data: data(bytes) }] }, 'BUNDLE_DIGEST')
})

test('a target that cannot be written, an abort: typed or passed on, nothing left behind', async () => {
  const { dir, parts } = await makeParts()
  await expect(writeBundle(parts, join(dir, 'none', 'out.bundle'))).rejects.toEqual(refusal('BUNDLE_WRITE'))
  const signal = AbortSignal.abort()
  await expect(writeBundle(parts, join(dir, 'out.bundle'), { signal })).rejects.toThrow(/abort/i)
  expect(readdirSync(dir)).toEqual(['demo.build'])
})

test('packing: chunks rebuild the image, compressed ones only where it pays', async () => {
  const dir = scratch()
  const path = join(dir, 'image')
  const image = Buffer.concat([noise(200_704), Buffer.alloc(401_408), Buffer.from('text '.repeat(81_920))])
  writeFileSync(path, image)
  const packed = await packImage(path, { compress: true })
  expect(packed.dataPath).toBe(`${path}.data`)
  const data = readFileSync(packed.dataPath)
  expect(data.length).toBeLessThan(image.length / 2)
  const rebuilt = packed.index.chunks.map((chunk) =>
    unpackChunk(chunk, data.subarray(chunk.storedOffset, chunk.storedOffset + chunk.storedLength)),
  )
  expect(Buffer.concat(rebuilt).equals(image)).toBe(true)
  expect(packed.index.chunks[0]?.encoding).toBe('raw')
  expect(packed.index.chunks.at(-1)?.encoding).toBe('zstd')
  const tree = createTreeHasher()
  tree.update(image)
  expect(packed.root).toBe(tree.finish().root)

  const raw = await packImage(path, { compress: false, boundaries: [70_000, 150_000, 200_000] })
  expect(raw.dataPath).toBe(path)
  expect(raw.root).toBe(packed.root)
  expect(raw.index.chunks.slice(0, 3).map((chunk) => chunk.length)).toEqual([70_000, 80_000, 50_000])
})

test('packing what cannot be compressed leaves no data file', async () => {
  const path = join(scratch(), 'image')
  writeFileSync(path, noise(8192))
  const packed = await packImage(path, { compress: true })
  expect(packed.dataPath).toBe(path)
  expect(existsSync(`${path}.data`)).toBe(false)
})

test('an image that is empty, ragged or absent', async () => {
  const path = join(scratch(), 'image')
  for (const size of [0, 1, 4095, 4097]) {
    writeFileSync(path, Buffer.alloc(size))
    await expect(packImage(path, { compress: false })).rejects.toEqual(refusal('IMAGE_LENGTH'))
  }
  writeFileSync(path, Buffer.alloc(4096))
  await expect(packImage(path, { compress: false, boundaries: [9, 4097] })).rejects.toEqual(refusal('IMAGE_BOUNDARIES'))
  await expect(packImage(path, { compress: true, dataPath: '/nowhere/data' })).rejects.toEqual(refusal('BUNDLE_WRITE'))
  rmSync(path)
  await expect(packImage(path, { compress: false })).rejects.toEqual(refusal('SOURCE_OPEN'))
})

test('a build folder: finished, reopened, and refused when a file is missing or out of bounds', async () => {
  const folder = join(scratch(), 'x.build')
  mkdirSync(folder)
  writeFileSync(buildImagePath(folder, 'boot'), Buffer.alloc(40_960))
  writeFileSync(buildImagePath(folder, 'rootfs'), noise(40_960))
  await expect(openBuild(folder)).rejects.toEqual(refusal('BUILD_FOLDER'))
  const build = await finishBuild(folder, { release: RELEASE, attachments: { sbom: Buffer.from('{}') } })
  expect(readdirSync(folder).sort()).toEqual([
    'boot.data',
    'boot.idx',
    'boot.img',
    'rootfs.idx',
    'rootfs.img',
    'sbom.zst',
    'statement.json',
  ])
  expect(await openBuild(folder)).toEqual(build)
  expect(Buffer.from(build.payload).equals(readFileSync(join(folder, 'statement.json')))).toBe(true)
  truncateSync(join(folder, 'sbom.zst'), 65 * 1024 * 1024)
  await expect(openBuild(folder)).rejects.toEqual(refusal('BUILD_FOLDER'))
  rmSync(join(folder, 'sbom.zst'))
  await expect(openBuild(folder)).rejects.toEqual(refusal('BUILD_FOLDER'))
})

test('a build that fails half-way leaves no statement of an earlier one', async () => {
  const folder = join(scratch(), 'x.build')
  mkdirSync(folder)
  writeFileSync(buildImagePath(folder, 'boot'), Buffer.alloc(4096))
  writeFileSync(buildImagePath(folder, 'rootfs'), Buffer.alloc(4096))
  await finishBuild(folder, { release: RELEASE, attachments: {} })
  writeFileSync(buildImagePath(folder, 'rootfs'), Buffer.alloc(4097))
  await expect(finishBuild(folder, { release: RELEASE, attachments: {} })).rejects.toEqual(refusal('IMAGE_LENGTH'))
  expect(existsSync(join(folder, 'statement.json'))).toBe(false)
})
