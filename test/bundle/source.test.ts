import { openSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { readExactly } from '../../base/source.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { parseTarHeader, tarHeader } from '../../bundle/tar.ts'
import { haveTool, noise, run, scratch } from './tools.ts'

const refusal = (code: string) => expect.objectContaining({ name: 'BistableError', code })

test('reads any range in pieces of at most 1 MiB', async () => {
  const path = join(scratch(), 'file')
  const bytes = noise(3_000_000)
  writeFileSync(path, bytes)
  const source = await fileSource(path)
  expect(source.size).toBe(bytes.length)
  const pieces: Uint8Array[] = []
  // A piece is valid until the next one.
  for await (const piece of source.read(5, 2_500_000)) pieces.push(Uint8Array.from(piece))
  expect(Math.max(...pieces.map((piece) => piece.length))).toBe(1 << 20)
  expect(Buffer.concat(pieces).equals(bytes.subarray(5, 2_500_005))).toBe(true)
  expect((await readExactly(source, bytes.length, 0)).length).toBe(0)
  await source.close()
})

test('a file that became shorter', async () => {
  const path = join(scratch(), 'file')
  writeFileSync(path, noise(10_000))
  const source = await fileSource(path)
  truncateSync(path, 5000)
  await expect(readExactly(source, 0, source.size)).rejects.toEqual(refusal('SOURCE_READ'))
  await source.close()
})

test('a closed source, an aborted read', async () => {
  const path = join(scratch(), 'file')
  writeFileSync(path, noise(10))
  const source = await fileSource(path)
  await expect(readExactly(source, 0, 10, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i)
  await source.close()
  await expect(readExactly(source, 0, 10)).rejects.toEqual(refusal('SOURCE_READ'))
})

test('no such file, a folder, a device without size, a pipe that nobody feeds', async () => {
  const dir = scratch()
  const pipe = join(dir, 'pipe')
  for (const path of [join(dir, 'none'), dir, '/dev/null'])
    await expect(fileSource(path), path).rejects.toEqual(refusal('SOURCE_OPEN'))
  if (!haveTool('mkfifo')) return
  run('mkfifo', pipe)
  await expect(fileSource(pipe)).rejects.toEqual(refusal('SOURCE_OPEN'))
})

test('A24 offsets beyond 2^32 and sizes beyond 8^11, in a sparse file', async () => {
  const path = join(scratch(), 'sparse')
  const size = 8 ** 11 + 1024
  writeFileSync(path, '')
  truncateSync(path, size)
  const header = tarHeader('data/rootfs', 8 ** 11 + 7)
  const fd = openSync(path, 'r+')
  writeSync(fd, header, 0, 512, size - 512)
  const source = await fileSource(path)
  expect(source.size).toBe(size)
  const found = await readExactly(source, size - 512, 512)
  expect(parseTarHeader(found)).toEqual({ name: 'data/rootfs', size: 8 ** 11 + 7 })
  await source.close()
})
