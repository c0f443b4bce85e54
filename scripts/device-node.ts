import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rename, rm, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'

/**
 * The Node.js that runs the agent on the device: one pinned build, taken from the npm registry and checked against the
 * integrity below. Not a dependency in package.json: its `node` would shadow the one that runs our scripts.
 */
const VERSION = '22.23.3'
const INTEGRITY: Readonly<Record<string, string>> = {
  x64: 'sha512-qHnz5tFsHoj/WM+uRENVjWONi5hVvmwrgq8A4V76KpuVNAc4+jwK8x4gwbobE9BtHNg/AKR2583eYorLF/c7ng==',
  arm64: 'sha512-l3DAHZreylo+p9QXDtsOrjG2JXJqVzYXnAGmIQNOUNARcMppTO2cmewVQP+36tjJnSE+dzpMNtgW+c3oiDvXtA==',
}

const run = promisify(execFile)
const cache = resolve(import.meta.dirname, '..', '.cache', 'node')

/** Path of the pinned `node` for a device architecture ("x64", "arm64"); fetched once. */
export async function deviceNode(arch: 'x64' | 'arm64'): Promise<string> {
  const folder = join(cache, `${VERSION}-${arch}`)
  const binary = join(folder, 'package', 'bin', 'node')
  try {
    await stat(binary)
    return binary
  } catch {
    await mkdir(cache, { recursive: true })
    const work = await mkdtemp(join(cache, 'fetch-'))
    try {
      const { stdout } = await run('npm', [
        'pack',
        '--silent',
        '--pack-destination',
        work,
        `node-linux-${arch}@${VERSION}`,
      ])
      const packed = join(work, stdout.trim().split('\n').at(-1) ?? '')
      const found = `sha512-${createHash('sha512')
        .update(await readFile(packed))
        .digest('base64')}`
      if (found !== INTEGRITY[arch])
        throw new Error(`node-linux-${arch}@${VERSION} has integrity ${found}, ${INTEGRITY[arch]} is pinned`)
      await run('tar', ['-xzf', packed, '-C', work, 'package/bin/node'])
      await rm(packed)
      await rename(work, folder)
    } finally {
      await rm(work, { recursive: true, force: true })
    }
    return binary
  }
}
