import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { nodeFiles } from '../base/durable.ts'
import { systemCode } from '../base/errors.ts'
import { MAX_ENVELOPE_BYTES } from '../keys/dsse.ts'
import { MAX_ROOTS } from '../keys/root.ts'
import { publisherErrors } from './errors.ts'

/**
 * Reads the root envelopes N.json of a folder, oldest first. Other files are left alone.
 * @throws ROOTS_INVALID when there are none or a version is missing between two
 */
export async function readRoots(folder: string): Promise<readonly Uint8Array[]> {
  let names: readonly string[]
  try {
    names = await readdir(folder)
  } catch (cause) {
    throw publisherErrors.ROOTS_INVALID(`${folder} cannot be read: ${systemCode(cause)}`, { cause })
  }
  const versions = rootVersions(names)
  if (versions.length === 0 || versions.length > MAX_ROOTS)
    throw publisherErrors.ROOTS_INVALID(`${folder} holds ${versions.length} root statements, wanted 1 to ${MAX_ROOTS}`)
  const roots: Uint8Array[] = []
  for (const version of versions) {
    const bytes = await nodeFiles.read(join(folder, `${version}.json`), MAX_ENVELOPE_BYTES)
    if (bytes === undefined) throw publisherErrors.ROOTS_INVALID(`${version}.json went away`)
    roots.push(bytes)
  }
  return roots
}

/** The versions that names of the form N.json give, ascending. Pure. @throws ROOTS_INVALID for a gap */
export function rootVersions(names: readonly string[]): readonly number[] {
  const versions = names
    .map((name) => Number(/^([1-9]\d{0,8})\.json$/.exec(name)?.[1]))
    .filter(Number.isInteger)
    .sort((a, b) => a - b)
  for (const [i, version] of versions.entries()) {
    const wanted = (versions[0] ?? 0) + i
    if (version !== wanted) throw publisherErrors.ROOTS_INVALID(`${wanted}.json is missing before ${version}.json`)
  }
  return versions
}
