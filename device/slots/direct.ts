import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { MiB } from '../../base/bytes.ts'

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
  const buffer = await alignedBuffer(handle)
  if (buffer === undefined) {
    await handle.close()
    return undefined
  }
  return {
    async read(offset, into) {
      let at = 0
      while (at < into.length) {
        const start = offset + at
        const from = start - (start % BLOCK)
        const length = Math.min(SPAN, Math.ceil((offset + into.length - from) / BLOCK) * BLOCK)
        const { bytesRead } = await handle.read(buffer, 0, length, from)
        const usable = Math.min(bytesRead, offset + into.length - from)
        if (from + usable <= start) throw Object.assign(new Error(`ends before ${size} bytes`), { code: 'EIO' })
        into.set(buffer.subarray(start - from, usable), at)
        at = from + usable - offset
      }
    },
    close: () => handle.close(),
  }
}

async function alignedBuffer(handle: FileHandle): Promise<Uint8Array | undefined> {
  const memory = new ArrayBuffer(SPAN + BLOCK)
  for (let shift = 0; shift < BLOCK; shift += STEP) {
    const candidate = new Uint8Array(memory, shift, SPAN)
    try {
      await handle.read(candidate, 0, BLOCK, 0)
    } catch {
      continue
    }
    return candidate
  }
  return undefined
}
