import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { blockLibrary, compressBlock } from '../../bundle/squashfs/block-codec.ts'
import { deviceAddon } from '../../scripts/device-addon.ts'
import { deviceNode } from '../../scripts/device-node.ts'
import { program, text } from './kit.ts'

// Patches rest on this: the same library at the same level makes the same bytes, on a publisher of one kind and a device of
// another. The other processor is emulated (qemu-user); its Node.js and addon are the ones that arm64 devices get.

const cache = resolve(import.meta.dirname, '../../.cache')
const BLOCK = 128 * 1024
/**
 * The levels that each block is asked at. One for every strategy of the library, whose last ones take an emulated processor
 * seconds a block: `EXACT=all` asks all of them of every block.
 */
const LEVELS = [1, 3, 6, 9, 13, 15, 17, 19, 22]
const levelsOf = (n: number): readonly number[] =>
  process.env['EXACT'] === 'all' ? LEVELS : n < 2 ? [1, 9, 15, 19] : n === 2 ? [1, 9, 15] : [1, 9]

/** Why arm64 cannot be asked here; in CI it must be. */
function noArm64(): string | undefined {
  const has = (folder: string, what: RegExp): boolean =>
    existsSync(join(cache, folder)) && readdirSync(join(cache, folder)).some((name) => what.test(name))
  const missing = [
    ...(spawnSync('qemu-aarch64', ['--version']).status === 0 ? [] : ['qemu-aarch64']),
    ...(existsSync('/usr/aarch64-linux-gnu/lib/libstdc++.so.6') ? [] : ['the arm64 C++ library']),
    ...(has('node', /-arm64$/) ? [] : ['Node.js for arm64']),
    ...(has('addon', /-arm64-/) ? [] : ['the zstd addon for arm64']),
  ]
  return missing.length === 0 || process.env['CI'] !== undefined ? undefined : missing.join(', ')
}

/** Machine code, text, and what is neither. */
function blocks(): Buffer[] {
  const code = readFileSync(createRequire(import.meta.url).resolve('zstd-napi/build/Release/binding.node'))
  const noise = createHash('shake256', { outputLength: BLOCK }).update('noise').digest()
  const many = [code.subarray(0, BLOCK), code.subarray(BLOCK * 2, BLOCK * 3), program(BLOCK / 8, 0x400000, 1)]
  return [...many, text(2500, 2).subarray(0, BLOCK), text(90, 3), Buffer.alloc(BLOCK), noise]
}

const SCRIPT = `
const { createHash } = require('node:crypto')
const addon = { exports: {} }
process.dlopen(addon, process.argv[2])
const { CCtx, compressBound, versionString } = addon.exports
const bytes = require('node:fs').readFileSync(process.argv[3])
const digests = []
let at = 0
for (const [length, levels] of JSON.parse(process.argv[4])) {
  const block = bytes.subarray(at, at + length)
  at += length
  for (const level of levels) {
    const out = Buffer.alloc(compressBound(length))
    const size = new CCtx().compress(out, block, level)
    digests.push(createHash('sha256').update(size < length ? out.subarray(0, size) : block).digest('hex'))
  }
}
console.log(JSON.stringify({ arch: process.arch, library: 'zstd ' + versionString(), digests }))
`

describe('the compressor of blocks', () => {
  const missing = noArm64()

  it.skipIf(missing !== undefined)(
    `makes the same bytes on arm64${missing === undefined ? '' : ` (skipped, missing: ${missing})`}`,
    async () => {
      const dir = mkdtempSync(join(tmpdir(), 'bistable-exact-'))
      onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
      const all = blocks()
      writeFileSync(join(dir, 'blocks'), Buffer.concat(all))
      writeFileSync(join(dir, 'ask.cjs'), SCRIPT)
      const asked = JSON.stringify(all.map(({ length }, n) => [length, levelsOf(n)]))
      const node = await deviceNode('arm64')
      const parts = [join(dir, 'ask.cjs'), await deviceAddon('arm64'), join(dir, 'blocks'), asked]
      const said = execFileSync('qemu-aarch64', ['-L', '/usr/aarch64-linux-gnu', node, ...parts], { encoding: 'utf8' })
      const here = all.flatMap((block, n) =>
        levelsOf(n).map((level) => createHash('sha256').update(compressBlock(block, level).bytes).digest('hex')),
      )
      expect(JSON.parse(said)).toEqual({ arch: 'arm64', library: blockLibrary, digests: here })
    },
  )
})
