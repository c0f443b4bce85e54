import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { DIRECT_UNIT, isAligned, pageAligned } from '../../base/aligned.ts'
import { MiB, roundUp } from '../../base/bytes.ts'

/**
 * Reads that go past the page cache (O_DIRECT).
 *
 * The kernel wants offset, length and memory address aligned. What is asked for in that way, into memory from
 * `pageAligned`, is read in place; anything else through a window of whole blocks.
 */

const SPAN = MiB

export interface DirectReader {
  /** Fills `into` from `offset`; one call at a time. */
  read(offset: number, into: Uint8Array): Promise<void>
  close(): Promise<void>
}

/** Undefined when this file system or device has no direct reads. `size`: bytes of the file or device. */
export async function openDirectReader(path: string, size: number): Promise<DirectReader | undefined> {
  let handle: FileHandle
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_DIRECT)
  } catch {
    return undefined
  }
  let window = pageAligned(DIRECT_UNIT)

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
    close: () => handle.close(),
  }

  function endsEarly(): Error {
    return Object.assign(new Error(`ends before its ${size} bytes`), { code: 'EIO' })
  }
}
