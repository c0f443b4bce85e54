import { type BistableError, isBistableError, systemCode } from '../../base/errors.ts'
import type { ByteSource } from '../../base/source.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { doorErrors } from './errors.ts'

/**
 * A bundle in a file or on a block device.
 * @throws TRANSPORT_MISSING, TRANSPORT_REFUSED, TRANSPORT_FILE_FAILED; reading throws TRANSPORT_SHORT,
 *   TRANSPORT_FILE_FAILED
 */
export async function openFileDoor(path: string): Promise<ByteSource> {
  let source: ByteSource
  try {
    source = await fileSource(path)
  } catch (error) {
    throw doorError(path, error)
  }
  return {
    name: path,
    size: source.size,
    async *read(offset, length, options) {
      if (offset + length > source.size)
        throw doorErrors.TRANSPORT_SHORT(`${path} has ${source.size} bytes, ${offset + length} are needed`)
      try {
        yield* source.read(offset, length, options)
      } catch (error) {
        throw doorError(path, error)
      }
    },
    close: () => source.close(),
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
