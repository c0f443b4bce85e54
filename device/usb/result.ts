import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { systemReason } from '../../base/errors.ts'
import { usbErrors } from './errors.ts'

/** What became of a stick, for whoever carries it back: one small JSON file in its top folder. */

const MAX_JOURNAL_LINES = 300

export interface StickResult {
  readonly device: string | null
  readonly product: string
  /** The device's clock, which may be wrong; `clock` says whether it was set from the network. */
  readonly at: string
  readonly clock: 'synchronised' | 'not-set'
  readonly ok: boolean
  /** The same code as on the command line and in status; OK when nothing was refused. */
  readonly code: string
  /** The exit code that a command with this outcome ends with. */
  readonly exit: number
  readonly message: string
  readonly next: string | null
  /** "EPOCH.COUNTER" that runs, and that was armed. */
  readonly running: string
  readonly armed: string | null
  readonly files: readonly { readonly name: string; readonly code: string; readonly message: string }[]
  /** What the install did, line by line; docs/architecture.md. */
  readonly journal: readonly string[]
}

/** Plain in every file system, and one per device, so that a stick can go round. */
export function resultName(deviceId: string | undefined): string {
  const id = deviceId !== undefined && /^[A-Za-z0-9._-]{1,64}$/.test(deviceId) ? deviceId : 'unnamed'
  return `bistable-${id}.json`
}

export function encodeResult(result: StickResult): Uint8Array {
  const journal = result.journal.slice(-MAX_JOURNAL_LINES)
  return Buffer.from(`${JSON.stringify({ type: 'stick-result', version: 1, ...result, journal }, null, 1)}\n`)
}

/**
 * Writes the file and waits until the stick has it. Whoever prepared the stick chose what stands at the name: only a
 * regular file is written, no link is followed.
 * @param folder the stick, mounted for writing
 * @throws USB_RESULT
 */
export async function writeResult(folder: string, name: string, bytes: Uint8Array): Promise<void> {
  const path = join(folder, name)
  try {
    const { O_WRONLY, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants
    const file = await open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o644)
    try {
      const found = await file.stat()
      if (!found.isFile() || found.nlink > 1) throw new Error('something else stands at its name')
      await file.truncate(0)
      await file.writeFile(bytes)
      await file.sync()
    } finally {
      await file.close()
    }
    const above = await open(folder, constants.O_RDONLY)
    try {
      await above.sync()
    } finally {
      await above.close()
    }
  } catch (cause) {
    throw usbErrors.USB_RESULT(`${name} cannot be written to the stick: ${systemReason(cause)}`, { cause })
  }
}
