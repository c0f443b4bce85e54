import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { MiB, roundUp } from '../../base/bytes.ts'
import { systemCode } from '../../base/errors.ts'

/**
 * Reads that go past the page cache (O_DIRECT).
 *
 * The kernel wants offset, length and memory address aligned. Offset and length are rounded to 4096 here. Node.js does
 * not tell where a buffer lies, but memory never moves once allocated; so the right place inside a slightly larger
 * buffer is found by trying: the kernel refuses a misaligned address with EINVAL, at once and without harm.
 */

const BLOCK = 4096
const SPAN = MiB
/** Allocators align to 8 bytes at least; no device asks for more than a page. */
const STEP = 8

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
  const memory = new ArrayBuffer(SPAN + BLOCK)
  let shift = 0

  /** Reads aligned bytes into the buffer and returns what came. */
  async function readAligned(from: number, length: number): Promise<Uint8Array> {
    for (;;) {
      const buffer = new Uint8Array(memory, shift, length)
      try {
        return buffer.subarray(0, (await handle.read(buffer, 0, length, from)).bytesRead)
      } catch (error) {
        // A hole in a file is read without a look at the address, so the place may prove wrong later than at first.
        if (systemCode(error) !== 'EINVAL' || shift + STEP >= BLOCK) throw error
        shift += STEP
      }
    }
  }

  try {
    await readAligned(0, BLOCK)
  } catch {
    await handle.close()
    return undefined
  }
  return {
    async read(offset, into) {
      let at = 0
      while (at < into.length) {
        const start = offset + at
        const from = start - (start % BLOCK)
        const end = offset + into.length
        const bytes = await readAligned(from, Math.min(SPAN, roundUp(end - from, BLOCK)))
        const usable = bytes.subarray(start - from, end - from)
        if (usable.length === 0) throw Object.assign(new Error(`ends before its ${size} bytes`), { code: 'EIO' })
        into.set(usable, at)
        at += usable.length
      }
    },
    close: () => handle.close(),
  }
}
