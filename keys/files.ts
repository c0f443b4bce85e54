import { join } from 'node:path'
import { nodeFiles, writeFileDurably } from '../base/durable.ts'
import { decodeEnvelope, encodeEnvelope, MAX_ENVELOPE_BYTES } from './dsse.ts'
import { keyErrors } from './errors.ts'
import type { Envelope } from './types.ts'

/** Reads a file that must be there. @throws KEY_FILE_MISSING, FILE_* */
export async function readRequired(path: string, limit: number): Promise<Uint8Array> {
  const bytes = await nodeFiles.read(path, limit)
  if (bytes === undefined) throw keyErrors.KEY_FILE_MISSING(`${path} is not there`)
  return bytes
}

/** @throws KEY_FILE_MISSING, ENVELOPE_*, FILE_* */
export async function readEnvelopeFile(path: string): Promise<Envelope> {
  return decodeEnvelope(await readRequired(path, MAX_ENVELOPE_BYTES))
}

/** Replaces the file so that a power cut leaves the old envelope or the new one. @throws FILE_* */
export async function writeEnvelopeFile(path: string, envelope: Envelope): Promise<void> {
  await writeFileDurably(path, encodeEnvelope(envelope))
}

/** Refuses to go on when something is at `path` already. @throws KEY_FILE_EXISTS */
export async function requireAbsent(path: string): Promise<void> {
  // One byte tells that it is there; a larger file fails the read, which is an answer too.
  if ((await nodeFiles.read(path, MAX_ENVELOPE_BYTES)) !== undefined)
    throw keyErrors.KEY_FILE_EXISTS(`${path} is there already`)
}

/** Writes files into a folder, which is made; none may be there yet. @throws KEY_FILE_EXISTS, FILE_* */
export async function writeNewFiles(folder: string, files: ReadonlyMap<string, Uint8Array>): Promise<void> {
  await nodeFiles.makeDir(folder)
  for (const name of files.keys()) await requireAbsent(join(folder, name))
  for (const [name, bytes] of files) await writeFileDurably(join(folder, name), bytes)
}
