import { type BistableError, isBistableError, systemCode } from '../../base/errors.ts'
import type { ByteSource } from '../../base/source.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { type DoorClock, patience, systemClock } from './clock.ts'
import { doorErrors } from './errors.ts'

/** A piece of 1 MiB that takes longer than this will not come: the kernel gives up on a stick after 30 s a command. */
const STALL_MS = 120_000

export interface FileDoorOptions {
  readonly clock?: DoorClock
  readonly stallMs?: number
  /** Opens what the door reads; tests bring a medium of their own. */
  readonly open?: (path: string) => Promise<ByteSource>
}

/**
 * A bundle in a file or on a block device.
 * @throws TRANSPORT_MISSING, TRANSPORT_REFUSED, TRANSPORT_FILE_FAILED; reading throws TRANSPORT_SHORT,
 *   TRANSPORT_FILE_FAILED, TRANSPORT_STALLED
 */
export async function openFileDoor(path: string, options: FileDoorOptions = {}): Promise<ByteSource> {
  const { clock = systemClock, stallMs = STALL_MS, open = fileSource } = options
  let source: ByteSource
  let stalled = false
  try {
    source = await open(path)
  } catch (error) {
    throw doorError(path, error)
  }
  return {
    name: path,
    size: source.size,
    async *read(offset, length, options) {
      if (offset + length > source.size)
        throw doorErrors.TRANSPORT_SHORT(`${path} has ${source.size} bytes, ${offset + length} are needed`)
      const pieces = source.read(offset, length, options)[Symbol.asyncIterator]()
      const patient = patience(clock, stallMs, () => {
        stalled = true
        return doorErrors.TRANSPORT_STALLED(`${path} gave nothing for ${stallMs} ms`)
      })
      try {
        for (;;) {
          const piece = await patient.wait(pieces.next())
          if (piece.done === true) return
          yield piece.value
        }
      } catch (error) {
        throw doorError(path, error)
      } finally {
        patient.end()
        // A read that the kernel does not end cannot be waited for; its file stays open until it does.
        if (!stalled) await pieces.return?.()
      }
    },
    close: async () => {
      if (stalled) void source.close().catch(() => undefined)
      else await source.close()
    },
  }
}

/** A file source's failure in the words of a door; anything else (a cancel) unchanged. */
function doorError(path: string, error: unknown): BistableError | unknown {
  if (!isBistableError(error, 'SOURCE_OPEN') && !isBistableError(error, 'SOURCE_READ')) return error
  const code = systemCode(error.cause)
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return doorErrors.TRANSPORT_MISSING(`there is no file ${path}`, { cause: error })
  if (code === 'EACCES' || code === 'EPERM')
    return doorErrors.TRANSPORT_REFUSED(`${path} may not be read: ${code}`, { cause: error })
  const next =
    code === undefined ? { next: 'Give the path of a bundle: a file, or a block device that holds one.' } : {}
  return doorErrors.TRANSPORT_FILE_FAILED(error.message, { cause: error, ...next })
}
