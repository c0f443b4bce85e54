import { open } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { compareBytes, hex } from '../base/bytes.ts'
import { nodeFiles, writeFileDurably } from '../base/durable.ts'
import { systemCode, systemReason } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
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

/** The lock is held for a few small reads and writes, never while somebody looks for a token. */
const LOCK_WAIT_MS = 10_000
const LOCK_LOOK_MS = 20

/**
 * Adds an envelope's signatures to those that its file holds by now, so that nobody's is lost when several sign one file at
 * once, on this machine or on others that share the folder. Where there is no file yet, it is made.
 *
 * A lock file stands beside it meanwhile (`.NAME.lock`), made where none is: network file systems carry that too, where they
 * do not carry locks on open files. Whoever is killed within that moment leaves it behind, and a person must remove it.
 * @param read what stands in the file, as an envelope
 * @returns what is in the file now
 * @throws ENVELOPE_BUSY, MERGE_OTHER when the file holds another statement by now, ENVELOPE_*, FILE_*
 */
export async function addToEnvelopeFile(
  path: string,
  envelope: Envelope,
  read: (bytes: Uint8Array) => Envelope = decodeEnvelope,
  waitMs = LOCK_WAIT_MS,
): Promise<Envelope> {
  const lock = join(dirname(path), `.${basename(path)}.lock`)
  await takeLock(lock, path, waitMs)
  try {
    const bytes = await nodeFiles.read(path, MAX_ENVELOPE_BYTES)
    const whole = bytes === undefined ? envelope : withSignatures(envelope, [read(bytes)], path)
    await writeEnvelopeFile(path, whole)
    return whole
  } finally {
    await nodeFiles.remove(lock)
  }
}

async function takeLock(lock: string, path: string, waitMs: number): Promise<void> {
  for (let waited = 0; ; waited += LOCK_LOOK_MS) {
    try {
      await (await open(lock, 'wx', 0o644)).close()
      return
    } catch (cause) {
      if (systemCode(cause) !== 'EEXIST')
        throw fileErrors.FILE_FAILED(`cannot make ${lock}: ${systemReason(cause)}`, { cause })
      if (waited >= waitMs)
        throw keyErrors.ENVELOPE_BUSY(`somebody else is writing ${path}: ${lock} is there`, { cause })
    }
    await sleep(LOCK_LOOK_MS)
  }
}

/**
 * The envelope with the signatures of other copies too, each once, in order. Pure.
 * @param where of the copies, for messages
 * @throws MERGE_OTHER when one is of another statement
 */
export function withSignatures(envelope: Envelope, copies: readonly Envelope[], where: string): Envelope {
  const found = new Map<string, Uint8Array>()
  for (const { payloadType, payload, signatures } of [envelope, ...copies]) {
    if (payloadType !== envelope.payloadType || compareBytes(payload, envelope.payload) !== 0)
      throw keyErrors.MERGE_OTHER(`${where} is not a copy of the same statement`)
    for (const signature of signatures) found.set(hex(signature), signature)
  }
  return { ...envelope, signatures: [...found.values()].sort(compareBytes) }
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
