import { constants } from 'node:fs'
import { access, type FileHandle, open, stat, writeFile } from 'node:fs/promises'
import { MiB } from '../../base/bytes.ts'
import { type BistableError, systemCode } from '../../base/errors.ts'
import { type DirectFile, openDirect } from './direct.ts'
import { slotErrors } from './errors.ts'
import type { Freshness, SlotDevice, SlotPlace } from './types.ts'

const DROP_CACHES = '/proc/sys/vm/drop_caches'
/** Largest single write handed to the kernel, so that a cancel or an error is noticed soon. */
const PIECE = MiB

/**
 * Opens a slot for writing: the one place that does.
 *
 * A block device is opened exclusively, so the kernel itself refuses one that is mounted or held by device-mapper
 * (SLOT_IN_USE), and nothing can mount it while the install runs.
 *
 * Writes go past the page cache where memory and place are aligned and the file system can: a copy less, and what the
 * running system has in its cache stays there. Nothing is promised before `flush` either way.
 *
 * Fresh reads: by O_DIRECT where the file system or device can; else by emptying the page cache before the first fresh
 * read after a flush (needs root); else from the cache. `freshness` says which.
 */
export async function openSlotDevice(place: SlotPlace): Promise<SlotDevice> {
  const handle = await openForWriting(place)
  try {
    const direct = await openDirect(place.path, place.size, 'r+')
    const freshness: Freshness = direct !== undefined ? 'direct' : (await mayWrite(DROP_CACHES)) ? 'dropped' : 'cached'
    return makeDevice(place, handle, direct, freshness)
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** Opens a place for reading only, through the page cache: a reuse source. */
export async function openForReuse(place: SlotPlace): Promise<Pick<SlotDevice, 'name' | 'size' | 'read' | 'close'>> {
  const handle = await open(place.path, constants.O_RDONLY).catch((error: unknown) => {
    throw failed('open', place.path, error)
  })
  return {
    name: place.path,
    size: place.size,
    read: (offset, into) => readAll(handle, place.path, offset, into),
    close: () => handle.close(),
  }
}

function makeDevice(
  place: SlotPlace,
  handle: FileHandle,
  direct: DirectFile | undefined,
  freshness: Freshness,
): SlotDevice {
  let dropped = false
  const within = (offset: number, length: number): void => {
    if (offset < 0 || offset + length > place.size)
      throw new RangeError(`bytes ${offset}..${offset + length} are outside of ${place.path} (${place.size} bytes)`)
  }
  return {
    name: place.path,
    size: place.size,
    freshness,
    async read(offset, into, { fresh }) {
      within(offset, into.length)
      if (!fresh) return readAll(handle, place.path, offset, into)
      if (direct !== undefined) {
        return direct.read(offset, into).catch((error: unknown) => {
          throw failed('read', place.path, error)
        })
      }
      if (freshness === 'dropped' && !dropped) {
        await writeFile(DROP_CACHES, '1\n')
        dropped = true
      }
      return readAll(handle, place.path, offset, into)
    },
    async write(offset, bytes) {
      within(offset, bytes.length)
      try {
        let at = 0
        while (at < bytes.length) {
          const part = bytes.subarray(at)
          const cached = direct?.cachedFirst(offset + at, part) ?? part.length
          if (direct !== undefined && cached === 0) {
            at += await direct.write(offset + at, part)
            continue
          }
          const { bytesWritten } = await handle.write(part, 0, Math.min(PIECE, cached), offset + at)
          if (bytesWritten === 0) throw slotErrors.SLOT_WRITE_FAILED(`${place.path} took no byte at ${offset + at}`)
          at += bytesWritten
        }
      } catch (error) {
        throw failed('write', place.path, error)
      }
    },
    async flush() {
      await handle.datasync().catch((error: unknown) => {
        throw failed('write', place.path, error)
      })
      dropped = false
    },
    async close() {
      await direct?.close()
      await handle.close()
    },
  }
}

async function openForWriting(place: SlotPlace): Promise<FileHandle> {
  try {
    const found = await stat(place.path)
    if (place.kind === 'block' ? !found.isBlockDevice() : !found.isFile())
      throw slotErrors.SLOT_OPEN_FAILED(`${place.path} is no longer the ${place.kind} it was`)
    // On a block device O_EXCL (without O_CREAT) claims it: EBUSY when anything else has.
    return await open(place.path, constants.O_RDWR | (place.kind === 'block' ? constants.O_EXCL : 0))
  } catch (error) {
    throw failed('open', place.path, error)
  }
}

async function readAll(handle: FileHandle, name: string, offset: number, into: Uint8Array): Promise<void> {
  let at = 0
  while (at < into.length) {
    let got: number
    try {
      got = (await handle.read(into, at, into.length - at, offset + at)).bytesRead
    } catch (error) {
      throw failed('read', name, error)
    }
    if (got === 0) throw slotErrors.SLOT_READ_FAILED(`${name} ends at byte ${offset + at}`)
    at += got
  }
}

function failed(what: 'open' | 'read' | 'write', path: string, error: unknown): BistableError | Error {
  const code = systemCode(error)
  if (code === undefined || !/^E[A-Z0-9]+$/.test(code)) return error instanceof Error ? error : new Error(String(error))
  const sentence = `cannot ${what} ${path}: ${code}`
  if (what === 'open') {
    if (code === 'ENOENT' || code === 'ENXIO') return slotErrors.SLOT_MISSING(sentence, { cause: error })
    if (code === 'EBUSY') return slotErrors.SLOT_IN_USE(sentence, { cause: error })
    return slotErrors.SLOT_OPEN_FAILED(sentence, { cause: error })
  }
  if (what === 'read') return slotErrors.SLOT_READ_FAILED(sentence, { cause: error })
  if (code === 'ENOSPC' || code === 'EDQUOT') return slotErrors.SLOT_NO_SPACE(sentence, { cause: error })
  return slotErrors.SLOT_WRITE_FAILED(sentence, { cause: error })
}

async function mayWrite(path: string): Promise<boolean> {
  try {
    await access(path, constants.W_OK)
    return true
  } catch {
    return false
  }
}
