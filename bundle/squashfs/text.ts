import { squashErrors } from './errors.ts'

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Bytes as text. @throws SQUASHFS_NAME when they are not UTF-8 or contain NUL */
export function decodeText(bytes: Uint8Array, what: string): string {
  let text: string
  try {
    text = utf8.decode(bytes)
  } catch (cause) {
    throw squashErrors.SQUASHFS_NAME(`${what} is not UTF-8`, { cause })
  }
  if (text.includes('\0')) throw squashErrors.SQUASHFS_NAME(`${what} contains NUL`)
  return text
}
