import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'

it('makes folders of any name, also one letter below where one stands', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-dir-'))
  const letter = ['q', 'x', 'y', 'z'].find((name) => !existsSync(name)) ?? 'w'
  onTestFinished(() => {
    rmSync(folder, { recursive: true })
    rmSync(letter, { recursive: true, force: true })
  })
  // A worker of the test runner cannot change its folder: the letter is made, and removed, where it stands.
  await nodeFiles.makeDir(join(letter, 'roots'))
  expect(existsSync(join(letter, 'roots'))).toBe(true)
  for (const path of [join(folder, 'a', 'b'), relative('.', join(folder, 'c', 'd', 'e'))]) {
    await nodeFiles.makeDir(path)
    await nodeFiles.makeDir(path)
    expect(existsSync(path)).toBe(true)
  }
})
