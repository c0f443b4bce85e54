import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { filePieces } from '../../base/file-pieces.ts'

it('gives a file in pieces, never more than asked for, and follows no link', () => {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-pieces-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, 'f')
  const bytes = Buffer.from(Array.from({ length: 40_000 }, (_, i) => (i * 7 + (i >> 8)) & 255))
  writeFileSync(path, bytes)
  const copied = (atMost: number) => {
    const pieces: Buffer[] = []
    for (const piece of filePieces(path, atMost)) pieces.push(Buffer.from(piece))
    return Buffer.concat(pieces)
  }
  expect(copied(1 << 20).equals(bytes)).toBe(true)
  expect(copied(20_000).equals(bytes.subarray(0, 20_000))).toBe(true)
  expect(copied(0)).toHaveLength(0)
  symlinkSync(path, join(folder, 'link'))
  expect(() => [...filePieces(join(folder, 'link'), 10)]).toThrow(/ELOOP/)
})
