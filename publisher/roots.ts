import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { compareBytes } from '../base/bytes.ts'
import { nodeFiles, writeFileDurably } from '../base/durable.ts'
import { systemReason } from '../base/errors.ts'
import { decodeEnvelope, MAX_ENVELOPE_BYTES } from '../keys/dsse.ts'
import { keyErrors } from '../keys/errors.ts'
import { MAX_ROOTS } from '../keys/root.ts'
import type { TrustedRoots } from '../keys/types.ts'
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
    throw publisherErrors.ROOTS_INVALID(`${folder} cannot be read: ${systemReason(cause)}`, { cause })
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

/**
 * Writes the walked chain as N.json into a publish folder, oldest first, so that devices can follow it whenever they
 * look. A version that is there already stays as it is; another root of the same version is refused.
 * @throws ROOT_FORK, ENVELOPE_*, FILE_*
 */
export async function publishRoots(trusted: TrustedRoots, folder: string): Promise<void> {
  await nodeFiles.makeDir(folder)
  const first = trusted.current.version - trusted.envelopes.length + 1
  for (const [i, bytes] of trusted.envelopes.entries()) {
    const path = join(folder, `${first + i}.json`)
    const present = await nodeFiles.read(path, MAX_ENVELOPE_BYTES)
    if (present === undefined) await writeFileDurably(path, bytes)
    else if (compareBytes(decodeEnvelope(present).payload, decodeEnvelope(bytes).payload) !== 0)
      throw keyErrors.ROOT_FORK(`${path} is there already and is another root`)
  }
}
