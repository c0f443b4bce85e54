import { readSync } from 'node:fs'
import { cliErrors, type Invocation, type OptionSpec, stringOption } from '../base/cli.ts'
import { nodeFiles } from '../base/durable.ts'
import { systemCode } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
import { keyErrors } from './errors.ts'
import type { AskPassphrase } from './file-signer.ts'

/** Passphrases come from a file or an open descriptor: never from an argument, which every process can list. */

const MAX_BYTES = 1026

export const passphraseOptions = {
  'passphrase-file': { type: 'string', value: 'FILE', help: 'read the passphrase from the first line of FILE' },
  'passphrase-fd': { type: 'string', value: 'N', help: 'read the passphrase from file descriptor N' },
} as const satisfies Record<string, OptionSpec>

/** What the options say about the passphrase, read once and only when asked for. @throws USAGE */
export function passphraseFrom(call: Invocation): AskPassphrase {
  const path = stringOption(call, 'passphrase-file')
  const descriptor = stringOption(call, 'passphrase-fd')
  if (path !== undefined && descriptor !== undefined)
    throw cliErrors.USAGE('--passphrase-file and --passphrase-fd exclude one another')
  if (descriptor !== undefined && !/^[0-9]{1,4}$/.test(descriptor))
    throw cliErrors.USAGE(`--passphrase-fd wants a number, found '${descriptor}'`)
  let asked: Promise<Uint8Array> | undefined
  return () => {
    asked ??= read(path, descriptor === undefined ? undefined : Number(descriptor))
    return asked
  }
}

async function read(path: string | undefined, descriptor: number | undefined): Promise<Uint8Array> {
  if (path !== undefined) {
    const bytes = await nodeFiles.read(path, MAX_BYTES)
    if (bytes === undefined) throw keyErrors.KEY_FILE_MISSING(`the passphrase file ${path} is not there`)
    return firstLine(bytes)
  }
  if (descriptor !== undefined) return firstLine(readDescriptor(descriptor))
  throw keyErrors.KEY_PASSPHRASE_MISSING('the key file is protected and no passphrase was given')
}

function readDescriptor(descriptor: number): Uint8Array {
  const buffer = new Uint8Array(MAX_BYTES)
  let at = 0
  try {
    while (at < buffer.length) {
      const count = readSync(descriptor, buffer, at, buffer.length - at, null)
      if (count === 0) break
      at += count
    }
  } catch (cause) {
    throw fileErrors.FILE_FAILED(`cannot read descriptor ${descriptor}: ${systemCode(cause) ?? cause}`, { cause })
  }
  return buffer.subarray(0, at)
}

/** The bytes before the first newline: editors and `echo` add one. */
function firstLine(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0x0a)
  const line = end < 0 ? bytes : bytes.subarray(0, end)
  return line.at(-1) === 0x0d ? line.subarray(0, -1) : line
}
