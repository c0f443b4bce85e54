import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import binding from 'zstd-napi/binding.js'
import { blockLibrary, compressBlock } from '../../bundle/squashfs/block-codec.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import { noise } from '../bundle/tools.ts'
import { env, haveTools, openPath, scratch, sqfstar } from './build.ts'

/** Runs, repeats and noise: what a block may hold. */
const content = fc
  .array(fc.tuple(fc.integer({ min: 0, max: 2 }), fc.integer({ min: 1, max: 20_000 }), fc.nat(255)), {
    minLength: 1,
    maxLength: 8,
  })
  .map((parts) => {
    const pieces = parts.map(([kind, length, seed]) =>
      kind === 0
        ? Buffer.alloc(length, seed)
        : kind === 1
          ? Buffer.alloc(length, `line ${seed} of text\n`)
          : noise(length, `n${seed}`),
    )
    return Buffer.concat(pieces).subarray(0, 131_072)
  })

describe('block codec', () => {
  it('says which library it is', () => {
    expect(blockLibrary).toMatch(/^zstd \d+\.\d+\.\d+$/)
  })

  it('gives one frame that unpacks to the content and is shorter, or the content itself', () => {
    expect(compressBlock(noise(4096), 15)).toMatchObject({ plain: true })
    const same = noise(4096)
    expect(compressBlock(same, 15).bytes).toBe(same)
    fc.assert(
      fc.property(content, fc.integer({ min: 1, max: 22 }), (bytes, level) => {
        const { bytes: stored, plain } = compressBlock(bytes, level)
        if (plain) expect(Buffer.compare(stored, bytes)).toBe(0)
        else {
          expect(stored.length).toBeLessThan(bytes.length)
          expect(Buffer.compare(decompressExactly(stored, bytes.length), bytes)).toBe(0)
        }
      }),
      { numRuns: 60 },
    )
  })

  it('gives the same bytes whatever was compressed before in the same thread, and as a context of its own does', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(content, fc.constantFrom(1, 3, 9, 15, 19)), { maxLength: 5 }), (blocks) => {
        for (const [bytes, level] of blocks) {
          const out = Buffer.alloc(binding.compressBound(bytes.length))
          const alone = out.subarray(0, new binding.CCtx().compress(out, bytes, level))
          const { bytes: stored, plain } = compressBlock(bytes, level)
          expect(plain).toBe(alone.length >= bytes.length)
          if (!plain) expect(Buffer.compare(stored, alone)).toBe(0)
        }
      }),
      { numRuns: 25 },
    )
  })

  it('keeps no hold on what it gave: a second block does not change the first', () => {
    const first = compressBlock(Buffer.alloc(5000, 'one'), 15)
    const copy = Buffer.from(first.bytes)
    compressBlock(Buffer.alloc(5000, 'another'), 15)
    expect(Buffer.compare(first.bytes, copy)).toBe(0)
    expect(first.bytes.buffer.byteLength).toBe(first.bytes.length)
  })

  it('refuses levels that are none', () => {
    for (const level of [0, 23, 1.5, Number.NaN]) expect(() => compressBlock(noise(10), level)).toThrow(RangeError)
  })

  it('gives the same bytes in a process of its own', () => {
    const bytes = Buffer.concat([readFileSync(import.meta.filename), noise(3000)])
    const script = `const b = require(process.argv[1]); const i = require('node:fs').readFileSync(0)
      const o = Buffer.alloc(b.compressBound(i.length)); process.stdout.write(o.subarray(0, new b.CCtx().compress(o, i, 15)))`
    const addon = createRequire(import.meta.url).resolve('zstd-napi/binding.js')
    const other = execFileSync(process.execPath, ['-e', script, addon], { input: bytes, env, cwd: scratch() })
    expect(Buffer.compare(compressBlock(bytes, 15).bytes, other)).toBe(0)
  })
})

describe.skipIf(!haveTools('sqfstar', 'mksquashfs'))('level of an image', () => {
  const items = [{ path: 'a', type: 'file', content: Buffer.from('a') }] as const
  it('is what mksquashfs wrote down, or its default when it wrote none', async () => {
    expect((await openPath(await sqfstar(items, '-comp', 'zstd'))).image.level).toBe(15)
    expect((await openPath(await sqfstar(items, '-comp', 'zstd', '-Xcompression-level', '7'))).image.level).toBe(7)
    expect((await openPath(await sqfstar(items, '-comp', 'gzip'))).image.level).toBeUndefined()
  })
})
