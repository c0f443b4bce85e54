import { type FileHandle, open } from 'node:fs/promises'
import { systemReason } from '../base/errors.ts'
import type { BootBackend } from './backend.ts'
import {
  BUCKETS,
  bucketBytes,
  decodeBucket,
  encodeBucket,
  GOOD_ATTEMPTS,
  readState,
  type StateLayout,
  withState,
} from './barebox-state.ts'
import { bootErrors } from './errors.ts'
import type { ReasonPlace } from './reason-place.ts'
import { type BootState, MAX_TRIES } from './state.ts'

/**
 * The barebox backend: an edge module over the device that holds barebox's state (a partition, an EEPROM's file). Each
 * bucket is written in place and flushed before the next, first to last: barebox takes the first that is whole, so the
 * first write decides, and a cut in it leaves the second bucket as it was.
 */

export interface BareboxOptions {
  readonly path: string
  /** Of the state on that device. */
  readonly offset: number
  /** `backend-stridesize` */
  readonly stride: number
  readonly layout: StateLayout
  readonly reasons: ReasonPlace
}

export function bareboxBackend({ path, offset, stride, layout, reasons }: BareboxOptions): BootBackend {
  const size = bucketBytes(layout)
  const using = async <T>(flags: string, work: (file: FileHandle) => Promise<T>): Promise<T> => {
    const file = await open(path, flags).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_READ(`${path} cannot be opened: ${systemReason(cause)}`, { cause })
    })
    try {
      return await work(file)
    } finally {
      await file.close()
    }
  }
  const buckets = (file: FileHandle) =>
    Promise.all(
      Array.from({ length: BUCKETS }, async (_, n) => {
        const { buffer, bytesRead } = await file.read(Buffer.alloc(size), 0, size, offset + n * stride)
        return decodeBucket(layout, buffer.subarray(0, bytesRead))
      }),
    ).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_READ(`${path}: ${systemReason(cause)}`, { cause })
    })
  const present = () => using('r', buckets)
  const store = async (data: Uint8Array): Promise<void> => {
    const bytes = encodeBucket(layout, data)
    await using('r+', async (file) => {
      for (let n = 0; n < BUCKETS; n++) {
        await file.write(bytes, 0, bytes.length, offset + n * stride)
        await file.sync()
      }
    }).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_WRITE(`${path}: ${systemReason(cause)}`, { cause })
    })
    if ((await present()).some((found) => found === undefined || Buffer.compare(found, data) !== 0))
      throw bootErrors.BOOT_STATE_NOT_STORED(`${path} reads back another state than was written`)
  }
  /** As barebox does: the first whole bucket. */
  const current = async () => {
    const found = await present()
    const data = found.find((bucket) => bucket !== undefined)
    const torn = found.some((bucket) => bucket === undefined || Buffer.compare(bucket, data ?? bucket) !== 0)
    return { data, torn }
  }
  const write = async (state: BootState): Promise<void> => {
    const { data } = await current()
    // What else the board keeps there stays; where no bucket can be read it is lost already.
    await store(withState(layout, data ?? new Uint8Array(layout.length), state))
  }
  return {
    describe: () => ({ name: 'barebox', place: `barebox state on ${path}`, maxTries: MAX_TRIES }),
    read: async () => {
      const { data, torn } = await current()
      const state = data === undefined ? undefined : readState(layout, data).state
      return { state, torn: torn && state !== undefined }
    },
    write,
    reason: () => reasons.reason(),
    clearReason: async (up) => {
      await reasons.clearReason(up)
      const { data } = await current()
      if (data === undefined) return
      const { state, attempts } = readState(layout, data)
      // bootchooser counts the committed slot down too: that it came up gives it its starts back.
      if (state !== undefined && state.primary === up && attempts < GOOD_ATTEMPTS) await write(state)
    },
    close: async () => undefined,
  }
}
