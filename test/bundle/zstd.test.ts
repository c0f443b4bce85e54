import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { compress, decompressExactly, decompressStream } from '../../bundle/zstd.ts'
import { haveTool, noise, run, scratch } from './tools.ts'

const text = Buffer.from('release, bundle, slot, image. '.repeat(20_000))
const frame = compress(text, 9)
const skippable = Buffer.from('502a4d1804000000abcdabcd', 'hex')
const thrown = (action: () => unknown) => {
  try {
    action()
  } catch (error) {
    return (error as { code?: string }).code
  }
  return 'nothing'
}

async function stream(pieces: Iterable<Uint8Array>, atMost: number, windowLogMax = 23): Promise<Buffer> {
  const out: Uint8Array[] = []
  for await (const piece of decompressStream(pieces, { atMost, windowLogMax })) out.push(piece)
  return Buffer.concat(out)
}
function* cut(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

test('one frame, exactly, both ways', async () => {
  expect(text.equals(decompressExactly(frame, text.length))).toBe(true)
  for (const size of [1, 3, 1000, 1 << 20]) expect(text.equals(await stream(cut(frame, size), text.length))).toBe(true)
  expect(Buffer.from(compress(text, 9)).equals(frame)).toBe(true)
})

test('cut short anywhere: refused', async () => {
  for (let n = 0; n < frame.length; n += 1 + (n >> 3)) {
    expect(
      thrown(() => decompressExactly(frame.subarray(0, n), text.length)),
      `${n} bytes`,
    ).toBe('ZSTD_INVALID')
    await expect(stream([frame.subarray(0, n)], text.length)).rejects.toMatchObject({ code: 'ZSTD_INVALID' })
  }
})

test('wrong length, either way: refused, and never more memory than announced', async () => {
  for (const wrong of [0, 1, text.length - 1, text.length + 1])
    expect(thrown(() => decompressExactly(frame, wrong))).toBe('ZSTD_LENGTH')
  await expect(stream([frame], text.length - 1)).rejects.toMatchObject({ code: 'ZSTD_LENGTH' })
  // 64 MiB of zeros in some 2 KB: a reader with a limit of 1 MiB sees at most a piece more than that.
  const bomb = compress(Buffer.alloc(64 << 20), 3)
  expect(bomb.length).toBeLessThan(10_000)
  let seen = 0
  const drain = async () => {
    for await (const piece of decompressStream([bomb], { atMost: 1 << 20, windowLogMax: 27 })) seen += piece.length
  }
  await expect(drain()).rejects.toMatchObject({ code: 'ZSTD_LENGTH' })
  expect(seen).toBeLessThanOrEqual(1 << 20)
  expect(thrown(() => decompressExactly(bomb, 1 << 20))).toBe('ZSTD_LENGTH')
})

test('anything behind the frame: refused, a second frame and a skippable one too', async () => {
  for (const tail of [Buffer.from([0]), frame, skippable]) {
    const bytes = Buffer.concat([frame, tail])
    expect(thrown(() => decompressExactly(bytes, text.length))).toBe('ZSTD_TRAILING')
    await expect(stream([bytes], 2 * text.length)).rejects.toMatchObject({ code: 'ZSTD_TRAILING' })
    await expect(stream([frame, tail], 2 * text.length)).rejects.toMatchObject({ code: 'ZSTD_TRAILING' })
  }
})

test('garbage, nothing, and a skippable frame in front: refused', async () => {
  expect(thrown(() => decompressExactly(noise(1000), 1000))).toBe('ZSTD_INVALID')
  await expect(stream([noise(1000)], 1000)).rejects.toMatchObject({ code: 'ZSTD_INVALID' })
  await expect(stream([], 1000)).rejects.toMatchObject({ code: 'ZSTD_INVALID' })
  expect(thrown(() => decompressExactly(skippable, 4))).not.toBe('nothing')
  expect(thrown(() => decompressExactly(Buffer.concat([skippable, frame]), text.length))).toBe('ZSTD_TRAILING')
})

test('a window larger than allowed: refused', async () => {
  const big = compress(noise(3 << 20), 19)
  expect((await stream([big], 3 << 20)).length).toBe(3 << 20)
  await expect(stream([big], 3 << 20, 20)).rejects.toMatchObject({ code: 'ZSTD_INVALID' })
})

test.skipIf(!haveTool('zstd'))('frames of the zstd program, which carry checksums, are read', async () => {
  const file = join(scratch(), 'text')
  writeFileSync(file, text)
  run('zstd', '-q', '-19', file)
  const other = readFileSync(`${file}.zst`)
  expect(text.equals(decompressExactly(other, text.length))).toBe(true)
  expect(text.equals(await stream(cut(other, 7), text.length))).toBe(true)
})
