import { chmod, mkdir, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { runTool } from '../tools.ts'
import type { DataFile, DataOptions } from './data.ts'

/**
 * The data partition as btrfs, made in a file of its own as an ordinary user. Not the same bytes twice: mkfs.btrfs writes
 * random identities and the time of day.
 */

/** @returns the path of the file, in `workDir`; @throws TOOL_MISSING, TOOL_FAILED */
export async function makeBtrfs(files: readonly DataFile[], options: Omit<DataOptions, 'offset'>): Promise<string> {
  const image = join(options.workDir, 'data.btrfs')
  const root = join(options.workDir, 'data-root')
  const run = options.signal === undefined ? {} : { signal: options.signal }
  try {
    await makeFolder(root)
    for (const { path, bytes } of files) {
      const place = join(root, path)
      for (const [i, c] of [...path].entries()) if (c === '/') await makeFolder(join(root, path.slice(0, i)))
      await writeFile(place, bytes)
      await chmod(place, 0o644)
      await utimes(place, options.time, options.time)
    }
    await writeFile(image, '')
    await truncate(image, options.size)
    const args = ['-q', '-f', '-L', 'data', '-U', options.uuid, '--rootdir', root, image]
    // It takes the files' owners from the host: in a user namespace an ordinary user's number is 0.
    if (process.getuid?.() === 0) await runTool('mkfs.btrfs', args, run)
    else await runTool('unshare', ['--map-root-user', 'mkfs.btrfs', ...args], run)
    await runTool('btrfs', ['check', '--readonly', image], run)
    return image
  } finally {
    await rm(root, { recursive: true, force: true })
  }
}

/** Whatever the caller's umask is. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true })
  await chmod(path, 0o755)
}
