import type { Files } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'

/**
 * Room that belongs to the records: a file of real blocks that is given up when a record finds the data partition full,
 * and made again as soon as the record stands. A record replaces an older one of about its size, so it takes room for a
 * moment only.
 */
export const RESERVE_BYTES = 512 * 1024
export const RESERVE_FILE = 'reserve'

/**
 * The same files, but what is written through them may use the reserve at `path`.
 * @param giveMore gives up what else there is, where the reserve is no help
 */
export function withReserve(files: Files, path: string, giveMore: () => Promise<void> = async () => undefined): Files {
  let given = false
  const orGive = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work()
    } catch (error) {
      if (!isBistableError(error, 'FILE_FULL')) throw error
      await files.remove(path)
      given = true
      await work().catch(async (second: unknown) => {
        if (!isBistableError(second, 'FILE_FULL')) throw second
        await giveMore()
        await work()
      })
    }
  }
  return {
    ...files,
    write: (target, bytes) => orGive(() => files.write(target, bytes)),
    // A file system that allocates late finds out at the flush.
    sync: (target) => orGive(() => files.sync(target)),
    // btrfs at any step.
    rename: (from, to) => orGive(() => files.rename(from, to)),
    makeDir: (target) => orGive(() => files.makeDir(target)),
    syncDir: async (target) => {
      await files.syncDir(target)
      if (!given) return
      given = false
      await keepReserve(files, path)
    },
  }
}

/** Makes the reserve where it is missing or short. Never fails: without it there is one guarantee less, no more. */
export async function keepReserve(files: Files, path: string): Promise<void> {
  try {
    if ((await files.read(path, RESERVE_BYTES))?.length === RESERVE_BYTES) return
    // Not zeros: nothing below may store them without blocks of their own.
    await files.write(path, new Uint8Array(RESERVE_BYTES).fill(0xb5))
    await files.sync(path)
  } catch {
    // A short one would keep room from the records and help them little.
    await files.remove(path).catch(() => undefined)
  }
}
