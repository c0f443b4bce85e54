import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished, vi } from 'vitest'
import { createKeyFile } from '../../keys/file-signer.ts'

// A file system without modes of its own, as a FAT stick is: what is created there is open to all.

const written: Uint8Array[] = []
vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof import('node:fs/promises')>()
  const open: typeof real.open = async (path, ...more) => {
    const file = await real.open(path, ...more)
    if (!String(path).includes('stick')) return file
    const { stat, writeFile } = { stat: file.stat.bind(file), writeFile: file.writeFile.bind(file) }
    file.stat = (async () => Object.assign(await stat(), { mode: 0o100755 })) as typeof file.stat
    file.writeFile = async (bytes, options) => {
      written.push(bytes as Uint8Array)
      await writeFile(bytes, options)
    }
    return file
  }
  return { ...real, open }
})

it('no key is written where others can read it: KEY_FILE_EXPOSED, and nothing stays', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-exposed-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'stick.key')
  await expect(createKeyFile(path, { kind: 'none' })).rejects.toMatchObject({ code: 'KEY_FILE_EXPOSED' })
  expect(written).toEqual([])
  expect(existsSync(path)).toBe(false)
  const own = join(folder, 'own.key')
  await createKeyFile(own, { kind: 'none' })
  expect(readFileSync(own, 'utf8')).toContain('bistable-key-1')
})
