import { type FileHandle, open } from 'node:fs/promises'

/**
 * Reads a log of writes as Linux's dm-log-writes target and QEMU's `blklogwrites` driver keep it (docs.kernel.org,
 * admin-guide/device-mapper/log-writes): one sector with the header, then per entry one sector with its head and, for a
 * write, the data. All numbers little-endian; sectors are of the size that the header names.
 */

const MAGIC = 0x6a736677736872n
const VERSION = 1n
/** More in one write than any block layer makes: the log is damaged. */
const MAX_WRITE = 256 * 1024 * 1024

export interface LoggedWrite {
  /** Bytes from the start of the device. */
  readonly offset: number
  /** Bytes; of a discard too, which has no data. */
  readonly length: number
  /** Undefined for a discard and for a flush without data. */
  readonly data: Buffer | undefined
  /** Everything logged before this is on the medium before it is. */
  readonly flush: boolean
  /** Itself on the medium when it completed. */
  readonly fua: boolean
  readonly discard: boolean
  /** Set by whoever runs the test. */
  readonly mark: string | undefined
}

/** Yields the entries in order. @throws Error on anything that is not such a log, or on one that ends early */
export async function* readLogWrites(path: string): AsyncGenerator<LoggedWrite> {
  const file = await open(path, 'r')
  try {
    const head = await readAt(file, 0, 28)
    if (head.readBigUInt64LE(0) !== MAGIC || head.readBigUInt64LE(8) !== VERSION)
      throw new Error(`${path} is not a log of writes, version 1`)
    const entries = small(head.readBigUInt64LE(16))
    const sector = head.readUInt32LE(24)
    if (sector < 512 || sector > 65_536 || sector % 512 !== 0) throw new Error(`${path} has sectors of ${sector} bytes`)
    let at = sector
    for (let n = 0; n < entries; n++) {
      const entry = await readAt(file, at, 32)
      const offset = small(entry.readBigUInt64LE(0)) * sector
      const length = small(entry.readBigUInt64LE(8)) * sector
      const flags = small(entry.readBigUInt64LE(16))
      const extra = small(entry.readBigUInt64LE(24))
      if (length > MAX_WRITE && (flags & 4) === 0) throw new Error(`entry ${n} of ${path} has ${length} bytes`)
      // A mark's text stands in the rest of the sector of its head.
      const mark =
        (flags & 8) === 0 ? undefined : (await readAt(file, at + 32, Math.min(extra, sector - 32))).toString()
      at += sector
      const carries = length > 0 && (flags & 4) === 0
      const data = carries ? await readAt(file, at, length) : undefined
      if (carries) at += length
      const [flush, fua, discard] = [1, 2, 4].map((bit) => (flags & bit) !== 0) as [boolean, boolean, boolean]
      yield { offset, length, data, flush, fua, discard, mark }
    }
  } finally {
    await file.close()
  }
}

/** How many entries a log has, also while it is written. */
export async function countEntries(path: string): Promise<number> {
  const file = await open(path, 'r')
  try {
    return small((await readAt(file, 0, 28)).readBigUInt64LE(16))
  } finally {
    await file.close()
  }
}

async function readAt(file: FileHandle, at: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length)
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, at + done)
    if (bytesRead === 0) throw new Error(`the log ends at byte ${at + done}`)
    done += bytesRead
  }
  return bytes
}

function small(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error(`a number in the log is ${value}`)
  return Number(value)
}
