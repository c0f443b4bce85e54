import { constants, type FileHandle, open } from 'node:fs/promises'
import { pageAligned } from '../base/aligned.ts'
import { systemCode } from '../base/errors.ts'

/** A partition as the boot state sees it. Small, so that a test can record every write and flush. */
export interface RawDevice {
  /** For messages. */
  readonly name: string
  /** At most 64 KiB at `offset`, both multiples of 512; from the medium where the system allows it. */
  read(offset: number, length: number): Promise<Uint8Array>
  /** Same bounds as `read`. One system call; a short write is an error. */
  write(offset: number, bytes: Uint8Array): Promise<void>
  /** Returns when everything written is on the medium. */
  flush(): Promise<void>
  close(): Promise<void>
}

const WINDOW = 64 * 1024

/**
 * Opens a partition (or an image file of one) past the page cache (O_DIRECT), so that reading back asks the medium.
 * Where the file system or device refuses O_DIRECT, reads may come from the cache: the price of running there at all.
 */
export async function openRawDevice(path: string): Promise<RawDevice> {
  let handle: FileHandle
  try {
    handle = await open(path, constants.O_RDWR | constants.O_DIRECT)
    if (!(await readsDirect(handle))) {
      await handle.close()
      handle = await open(path, constants.O_RDWR)
    }
  } catch (error) {
    if (systemCode(error) !== 'EINVAL') throw error
    handle = await open(path, constants.O_RDWR)
  }
  return fileDevice(path, handle)
}

/** By one sector: a disk with sectors of 4096 bytes refuses that. One that is lost says nothing about the others. */
async function readsDirect(handle: FileHandle): Promise<boolean> {
  try {
    await handle.read(pageAligned(WINDOW), 0, 512, 0)
    return true
  } catch (error) {
    return systemCode(error) !== 'EINVAL'
  }
}

function fileDevice(name: string, handle: FileHandle): RawDevice {
  const window = pageAligned(WINDOW)
  // One window, so one request at a time.
  let last: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const mine = last.then(work, work)
    last = mine.catch(() => undefined)
    return mine
  }
  const check = (offset: number, length: number): void => {
    if (offset % 512 !== 0 || length % 512 !== 0 || length > WINDOW || offset < 0)
      throw new RangeError(`${length} bytes at ${offset}: whole sectors, at most ${WINDOW} bytes`)
  }
  return {
    name,
    read: (offset, length) =>
      inTurn(async () => {
        check(offset, length)
        const { bytesRead } = await handle.read(window, 0, length, offset)
        if (bytesRead !== length)
          throw new RangeError(`${name} ends after ${bytesRead} of ${length} bytes at ${offset}`)
        return window.slice(0, length)
      }),
    write: (offset, bytes) =>
      inTurn(async () => {
        check(offset, bytes.length)
        window.set(bytes)
        const { bytesWritten } = await handle.write(window, 0, bytes.length, offset)
        if (bytesWritten !== bytes.length)
          throw new RangeError(`${name} took ${bytesWritten} of ${bytes.length} bytes at ${offset}`)
      }),
    flush: () => inTurn(() => handle.sync()),
    close: () => inTurn(() => handle.close()),
  }
}
