import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { isBistableError, systemCode, systemReason } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
import { publisherErrors } from './errors.ts'
import { runTool } from './tools.ts'

/** Hidden, empty, and left where it is: a lock file that is removed can be held twice. */
const LOCK = '.lock'
/** Whoever holds it signs and writes a few small files; a person may have to touch a token. */
const WAIT_MS = 10 * 60 * 1000
const TELL_MS = 1000

/**
 * Does `work` while no other publisher does the like in this publish folder: what it reads there still holds when it
 * writes. The kernel's lock on a file (flock(2)), which ends with the process that holds it, also between containers that
 * share the folder; between machines as far as the network file system carries such locks.
 *
 * The program `flock` takes it on our open file, where it stays until we close that.
 * Where the file system knows no locks, that is said and `work` is done.
 * @throws PUBLISH_BUSY, FILE_FAILED, TOOL_MISSING, and what `work` throws
 */
export async function aloneIn<T>(
  folder: string,
  edge: { readonly say: (line: string) => void; readonly signal?: AbortSignal },
  work: () => Promise<T>,
  waitMs = WAIT_MS,
): Promise<T> {
  const path = join(folder, LOCK)
  const file = await openLock(path)
  try {
    await take(file, path, edge, waitMs)
    return await work()
  } finally {
    await file.close()
  }
}

/** For reading where another user made it: a lock wants no more. Through no link, which could create a file elsewhere. */
async function openLock(path: string): Promise<FileHandle> {
  const { O_RDWR, O_CREAT, O_RDONLY, O_NOFOLLOW } = constants
  try {
    return await open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o644).catch(async (cause) => {
      if (systemCode(cause) !== 'EACCES') throw cause
      return await open(path, O_RDONLY | O_NOFOLLOW)
    })
  } catch (cause) {
    throw fileErrors.FILE_FAILED(`cannot open ${path}: ${systemReason(cause)}`, { cause })
  }
}

async function take(
  file: FileHandle,
  path: string,
  edge: { readonly say: (line: string) => void; readonly signal?: AbortSignal },
  waitMs: number,
): Promise<void> {
  const tooLong = AbortSignal.timeout(waitMs)
  const telling = setTimeout(() => edge.say(`waiting for another publisher, who holds ${path}`), TELL_MS)
  try {
    const signal = edge.signal === undefined ? tooLong : AbortSignal.any([edge.signal, tooLong])
    await runTool('flock', ['-x', '3'], { signal, inherit: file.fd })
  } catch (cause) {
    if (tooLong.aborted && edge.signal?.aborted !== true)
      throw publisherErrors.PUBLISH_BUSY(`another publisher has held ${path} for ${Math.round(waitMs / 1000)} s`, {
        cause,
      })
    if (!isBistableError(cause, 'TOOL_FAILED')) throw cause
    // Some network file systems know no locks.
    edge.say(`${path} cannot be locked: see that nobody else publishes there meanwhile (${cause.message})`)
  } finally {
    clearTimeout(telling)
  }
}
