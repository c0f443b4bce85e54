import { ociErrors } from '../oci/errors.ts'
import { MAX_NAME, MAX_PATH } from '../oci/limits.ts'

/** What a name may be. Names are only ever data here: nothing is created on the host under them. */

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
// C0, DEL and C1: a newline forges lines in lists, an escape talks to terminals.
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/

/** Decodes a name; refuses bytes that are not UTF-8, which two readers would show differently. */
export function decodeName(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes)
  } catch (cause) {
    throw ociErrors.LAYER_NAME(`the name ${showBytes(bytes)} is not UTF-8`, { cause })
  }
}

/** A name for messages: control characters escaped, cut at 120 characters. */
export function show(name: string): string {
  return JSON.stringify(name.length > 120 ? `${name.slice(0, 120)}…` : name).replace(
    /[\u007f-\u009f]/g,
    (c) => `\\u00${c.charCodeAt(0).toString(16)}`,
  )
}

function showBytes(bytes: Uint8Array): string {
  return show(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1'))
}

/**
 * Splits an entry's name into its parts: "./usr/bin/" is ["usr", "bin"], "./" is the root, [].
 * One leading "./" and, for directories, one trailing slash are the only freedoms.
 * @throws LAYER_PATH, LAYER_NAME, LAYER_LIMIT
 */
export function splitPath(name: string, isDir: boolean, maxDepth: number): string[] {
  if (name === '') throw ociErrors.LAYER_NAME('an entry has an empty name')
  if (CONTROL.test(name)) throw ociErrors.LAYER_NAME(`the name ${show(name)} holds a control character`)
  if (Buffer.byteLength(name) > MAX_PATH)
    throw ociErrors.LAYER_NAME(`the path ${show(name)} is longer than ${MAX_PATH} bytes`)
  if (name.startsWith('/')) throw ociErrors.LAYER_PATH(`the name ${show(name)} is absolute`)
  let rest = name
  if (isDir) {
    if (rest.endsWith('/')) rest = rest.slice(0, -1)
    if (rest === '.') return []
  }
  if (rest.startsWith('./')) rest = rest.slice(2)
  const parts = rest.split('/')
  for (const part of parts) {
    if (part === '' || part === '.' || part === '..')
      throw ociErrors.LAYER_PATH(`the name ${show(name)} has the part ${show(part)}`)
    if (part.length > MAX_NAME / 4 && Buffer.byteLength(part) > MAX_NAME)
      throw ociErrors.LAYER_NAME(`the name ${show(name)} has a part longer than ${MAX_NAME} bytes`)
  }
  if (parts.length > maxDepth) throw ociErrors.LAYER_LIMIT(`the path ${show(name)} is deeper than ${maxDepth} parts`)
  return parts
}

/** A symbolic link's target is data, but it must be one that a kernel would take and a report can show. */
export function checkTarget(path: string, target: string): void {
  if (target === '') throw ociErrors.LAYER_NAME(`the symbolic link ${show(path)} has no target`)
  if (CONTROL.test(target)) throw ociErrors.LAYER_NAME(`the target of ${show(path)} holds a control character`)
  if (Buffer.byteLength(target) > MAX_PATH)
    throw ociErrors.LAYER_NAME(`the target of ${show(path)} is longer than ${MAX_PATH} bytes`)
}
