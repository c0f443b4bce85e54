import { readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { systemCode } from '../base/errors.ts'

/** Names that nobody else has, for files that are being written: copies of bundles and their hints, patches and their units. */
const OURS = /^\.(?:\d+-[0-9a-f]{16}\.new(?:\.hints)?|.+\.\d+-[0-9a-f]{16}\.partial(?:\.units)?)$/
/** A file that is being written changes all the time. */
const DAY_MS = 24 * 60 * 60 * 1000

/**
 * Removes what publishers that were killed left in a publish folder: hidden files as large as bundles.
 * @param folder `bundles` or `deltas`
 * @throws the system's error when the folder cannot be read
 */
export async function sweepLeftovers(folder: string, now = Date.now()): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!OURS.test(name)) continue
    const path = join(folder, name)
    try {
      const { mtimeMs } = await stat(path)
      if (now - mtimeMs > DAY_MS) await rm(path, { force: true })
    } catch (error) {
      // Its publisher was done with it just now.
      if (systemCode(error) !== 'ENOENT') throw error
    }
  }
}
