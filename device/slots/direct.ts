import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { DIRECT_UNIT, isAligned, pageAligned } from '../../base/aligned.ts'
import { MiB, roundUp } from '../../base/bytes.ts'
import { systemCode } from '../../base/errors.ts'

/**
 * Reads and writes that go past the page cache (O_DIRECT).
 *
 * The kernel wants offset, length and memory address aligned. What is read in that way, into memory from
 * `pageAligned`, is read in place; anything else through a window of whole blocks.
 */

const SPAN = MiB

export interface DirectFile {
  /** Fills `into` from `offset`; one call at a time. */
  read(offset: number, into: Uint8Array): Promise<void>
  /** How many of these bytes must go through the page cache before the next can be given to `write`: all, or 0, or up to a block. */
  cachedFirst(offset: number, bytes: Uint8Array): number
  /**
   * Writes whole blocks from the start of `bytes`, at most 1 MiB; only where `cachedFirst` says 0.
   * @returns bytes written; 0: never again, `cachedFirst` says so from now on
   */
  write(offset: number, bytes: Uint8Array): Promise<number>
  close(): Promise<void>
}

/**
 * Undefined when this file system or device has no direct reads.
 * @param size bytes of the file or device
 * @param how to be opened: for reading only, or for writing too
 */
export async function openDirect(path: string, size: number, how: 'r' | 'r+'): Promise<DirectFile | undefined> {
  let handle: FileHandle
  try {
    handle = await open(path, (how === 'r' ? constants.O_RDONLY : constants.O_RDWR) | constants.O_DIRECT)
  } catch {
    return undefined
  }
  let window = pageAligned(DIRECT_UNIT)
  let writes = how === 'r+'

  /** Reads whole blocks through the window and returns what came. */
  async function readWindow(from: number, length: number): Promise<Uint8Array> {
    if (window.length < length) window = pageAligned(SPAN)
    return window.subarray(0, (await handle.read(window, 0, length, from)).bytesRead)
  }

  try {
    await readWindow(0, DIRECT_UNIT)
  } catch {
    await handle.close()
    return undefined
  }
  return {
    async read(offset, into) {
      let at = 0
      while (at < into.length) {
        const start = offset + at
        const end = offset + into.length
        const inPlace = Math.min(SPAN, end - start - ((end - start) % DIRECT_UNIT))
        if (inPlace > 0 && start % DIRECT_UNIT === 0 && isAligned(into.subarray(at))) {
          const { bytesRead } = await handle.read(into, at, inPlace, start)
          if (bytesRead === 0) throw endsEarly()
          at += bytesRead
          continue
        }
        const from = start - (start % DIRECT_UNIT)
        const bytes = await readWindow(from, Math.min(SPAN, roundUp(end - from, DIRECT_UNIT)))
        const usable = bytes.subarray(start - from, end - from)
        if (usable.length === 0) throw endsEarly()
        into.set(usable, at)
        at += usable.length
      }
    },
    cachedFirst(offset, bytes) {
      const head = Math.min(bytes.length, roundUp(offset, DIRECT_UNIT) - offset)
      if (!writes || bytes.length - head < DIRECT_UNIT || !isAligned(bytes.subarray(head))) return bytes.length
      return head
    },
    async write(offset, bytes) {
      const length = Math.min(SPAN, bytes.length - (bytes.length % DIRECT_UNIT))
      try {
        const { bytesWritten } = await handle.write(bytes, 0, length, offset)
        // A part of a block that was written, on a full medium, tells nothing to build on.
        if (bytesWritten % DIRECT_UNIT === 0 && bytesWritten > 0) return bytesWritten
      } catch (error) {
        // A file system that reads in this way and does not write, or wants larger units.
        if (systemCode(error) !== 'EINVAL') throw error
      }
      writes = false
      return 0
    },
    close: () => handle.close(),
  }

  function endsEarly(): Error {
    return Object.assign(new Error(`ends before its ${size} bytes`), { code: 'EIO' })
  }
}
