import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { KiB, MiB } from '../../base/bytes.ts'

/**
 * Reads the start of a file to nowhere, so that it stands in the page cache when its turn comes: until a command has its
 * trust and its records, the medium would have nothing to do. Nothing is looked at or kept, and nothing depends on it.
 */

/** What is read at most: the reader that comes behind asks the kernel for the rest by itself. */
const MOST = 128 * MiB
/** Of one call, which cannot be stopped: a fifth of a second on a slow stick. */
const STEP = 4 * MiB
/** All that one call reads goes into the same memory, again and again. */
const SCRATCH = 128 * KiB

/** What is being read: how to stop it. */
const running = new Map<string, () => Promise<void>>()

/**
 * Where the same file is read ahead already, nothing more is begun; whoever stops it stops it for all.
 * @returns stops it; resolves when no read is under way any more. Never fails.
 */
export function readAhead(path: string): () => Promise<void> {
  const stop = running.get(path) ?? begin(path)
  running.set(path, stop)
  return async () => {
    if (running.get(path) === stop) running.delete(path)
    await stop()
  }
}

function begin(path: string): () => Promise<void> {
  let stopped = false
  const work = async (): Promise<void> => {
    // Non-blocking: a FIFO must not hold a thread for ever.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      if (!(await file.stat()).isFile()) return
      const scratch = new Uint8Array(SCRATCH)
      const step = Array.from({ length: STEP / SCRATCH }, () => scratch)
      for (let at = 0; at < MOST && !stopped; at += STEP) if ((await file.readv(step, at)).bytesRead < STEP) return
    } finally {
      await file.close()
    }
  }
  // Whatever it meets, the reader behind it meets too, and says so.
  const done = work().catch(() => undefined)
  return async () => {
    stopped = true
    await done
  }
}
