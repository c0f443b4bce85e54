import { constants } from 'node:fs'
import { mkdir, open, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { isBistableError, systemCode, systemReason } from './errors.ts'
import { fileErrors } from './file-errors.ts'

/** Small files that must survive a power cut: written beside, flushed, renamed, flushed, read back. */

/** The few calls that durable writing needs; tests record them and inject faults. */
export interface Files {
  /** The whole file, or undefined when there is none. Fails with FILE_TOO_LARGE above `limit` bytes. */
  read(path: string, limit: number): Promise<Uint8Array | undefined>
  /** Creates or truncates, and writes; nothing is promised before `sync`. */
  write(path: string, bytes: Uint8Array): Promise<void>
  sync(path: string): Promise<void>
  rename(from: string, to: string): Promise<void>
  /** Makes creations and renames in a directory durable. */
  syncDir(path: string): Promise<void>
  /** Creates a directory and its parents, durably; existing ones are fine. */
  makeDir(path: string): Promise<void>
  /** Missing is fine. */
  remove(path: string): Promise<void>
  /** A directory and all in it. Missing is fine. */
  removeTree(path: string): Promise<void>
}

/** The real file system. Files are readable by everyone (status needs no root): never write a secret with this. */
export const nodeFiles: Files = {
  async read(path, limit) {
    let file: Awaited<ReturnType<typeof open>>
    try {
      // Non-blocking: a FIFO put in the place of a file must not stop the reader for ever.
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined
      throw failed('read', path, error)
    }
    try {
      // One byte over the limit tells "too large" without trusting the size that stat claims (0 in /proc).
      const buffer = new Uint8Array(limit + 1)
      let at = 0
      while (at < buffer.length) {
        const { bytesRead } = await file.read(buffer, at, buffer.length - at)
        if (bytesRead === 0) break
        at += bytesRead
      }
      if (at > limit) throw fileErrors.FILE_TOO_LARGE(`${path} has more than the ${limit} bytes allowed`)
      return buffer.slice(0, at)
    } catch (error) {
      throw isBistableError(error) ? error : failed('read', path, error)
    } finally {
      await file.close()
    }
  },
  async write(path, bytes) {
    await attempt('write', path, async () => {
      // A link in the place of a file that is to come, in a folder of many users, must not lead the writing elsewhere.
      const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants
      const file = await open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o644)
      try {
        await file.writeFile(bytes)
      } finally {
        await file.close()
      }
    })
  },
  async sync(path) {
    await attempt('flush', path, () => flush(path))
  },
  async rename(from, to) {
    await attempt('rename', from, () => rename(from, to))
  },
  async syncDir(path) {
    await attempt('flush', path, () => flush(path))
  },
  async makeDir(path) {
    await attempt('create', path, async () => {
      const first = await makeFolders(path)
      if (first === undefined) return
      // Every directory that got a new entry, from the deepest up.
      const highest = resolve(first)
      for (let at = resolve(path); at.length >= highest.length; at = dirname(at)) await flush(dirname(at))
    })
  },
  async remove(path) {
    await attempt('remove', path, () => rm(path, { force: true }))
  },
  async removeTree(path) {
    await attempt('remove', path, () => rm(path, { recursive: true, force: true }))
  },
}

/**
 * Replaces a small file so that after a power cut at any moment it holds the old bytes or the new ones.
 *
 * The name of the temporary file is fixed (`.NAME.new`), so cuts never pile up remains; callers hold a lock, one
 * writer at a time.
 */
export async function writeFileDurably(path: string, bytes: Uint8Array, files: Files = nodeFiles): Promise<void> {
  const beside = join(dirname(path), `.${basename(path)}.new`)
  await files.write(beside, bytes)
  await files.sync(beside)
  await files.rename(beside, path)
  await files.syncDir(dirname(path))
  await requireReadBack(path, bytes, files)
}

/** @throws FILE_READBACK unless the file holds exactly these bytes */
export async function requireReadBack(path: string, bytes: Uint8Array, files: Files = nodeFiles): Promise<void> {
  const back = await files.read(path, bytes.length)
  if (back === undefined || Buffer.compare(back, bytes) !== 0) {
    throw fileErrors.FILE_READBACK(`${path} differs from the ${bytes.length} bytes just written`)
  }
}

/**
 * Refuses what a file written beside must not take the place of: root can rename over a device, and /dev/null would be a
 * file from then on, or /dev/stdout, a link to one. Nothing there is fine, and a file too, or a link to one.
 * @throws FILE_FAILED
 */
export async function requireReplaceable(path: string): Promise<void> {
  try {
    if ((await stat(path)).isFile()) return
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return
    throw failed('write', path, error)
  }
  throw fileErrors.FILE_FAILED(`cannot write ${path}: a device, folder, pipe or socket stands there, wanted a file`, {
    next: 'Give the name of a file.',
  })
}

/** @returns the highest one that was made */
async function makeFolders(path: string): Promise<string | undefined> {
  const make = () => mkdir(path, { recursive: true, mode: 0o755 })
  try {
    return await make()
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error
    // Node.js 20 and 22 say that of a full file system, too: the highest missing one alone fails with the reason.
    let highest = resolve(path)
    while ((await stat(dirname(highest)).catch(() => undefined)) === undefined) highest = dirname(highest)
    await mkdir(highest, { mode: 0o755 })
    await make()
    return highest
  }
}

async function flush(path: string): Promise<void> {
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

async function attempt(what: string, path: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work()
  } catch (error) {
    throw failed(what, path, error)
  }
}

/** What the system said while something was read or written, as an error of ours; anything else as it is. */
export function storageFailure(what: string, path: string, error: unknown): unknown {
  const said = error instanceof Error && 'syscall' in error && !isBistableError(error)
  return said && !String(error.syscall).startsWith('spawn') ? failed(what, path, error) : error
}

function failed(what: string, path: string, error: unknown): Error {
  const code = systemCode(error)
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return fileErrors.FILE_FULL(`cannot ${what} ${path}: no space left`, { cause: error })
  }
  return fileErrors.FILE_FAILED(`cannot ${what} ${path}: ${systemReason(error)}`, { cause: error })
}
