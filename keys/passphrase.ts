import { readSync } from 'node:fs'
import { compareBytes } from '../base/bytes.ts'
import { cliErrors, type Invocation, type OptionSpec, stringOption } from '../base/cli.ts'
import { nodeFiles } from '../base/durable.ts'
import { systemCode } from '../base/errors.ts'
import { fileErrors } from '../base/file-errors.ts'
import { keyErrors } from './errors.ts'
import type { AskPassphrase } from './file-signer.ts'
import { runShell } from './shell.ts'
import { askTerminal } from './terminal.ts'

/**
 * Passphrases and PINs come from a file, an open descriptor, a command or the terminal: never from an argument or the
 * environment, which other processes can see.
 */

const MAX_BYTES = 1026

export const passphraseOptions = {
  'passphrase-file': { type: 'string', value: 'FILE', help: 'read the passphrase or PIN from the first line of FILE' },
  'passphrase-fd': { type: 'string', value: 'N', help: 'read the passphrase or PIN from file descriptor N' },
  'passphrase-command': { type: 'string', value: 'COMMAND', help: 'run COMMAND, which prints the passphrase or PIN' },
} as const satisfies Record<string, OptionSpec>

const NAMES = Object.keys(passphraseOptions) as (keyof typeof passphraseOptions)[]

/** True when an option says where the passphrase comes from. @throws USAGE when two do */
export function passphraseGiven(call: Invocation): boolean {
  const given = NAMES.filter((name) => stringOption(call, name) !== undefined)
  if (given.length > 1) throw cliErrors.USAGE(`${given.map((name) => `--${name}`).join(' and ')} exclude one another`)
  return given.length === 1
}

/**
 * Where passphrases come from. A file, a descriptor and a command are read once, and only when one is needed; the
 * terminal is asked for each key by itself.
 * @throws USAGE
 */
export function passphraseFrom(call: Invocation): AskPassphrase {
  const given = passphraseGiven(call)
  const descriptor = stringOption(call, 'passphrase-fd')
  if (descriptor !== undefined && !/^[0-9]{1,4}$/.test(descriptor))
    throw cliErrors.USAGE(`--passphrase-fd wants a number, found '${descriptor}'`)
  if (!given) return (what) => fromTerminal(call, `passphrase or PIN for ${what}: `)
  let asked: Promise<Uint8Array> | undefined
  return () => {
    asked ??= read(call)
    return asked
  }
}

/** The passphrase for new keys: asked for twice on a terminal, and once for all keys of this call. @throws USAGE */
export function newPassphraseFrom(call: Invocation): AskPassphrase {
  if (passphraseGiven(call)) return passphraseFrom(call)
  let asked: Promise<Uint8Array> | undefined
  return () => {
    asked ??= askTwice(call)
    return asked
  }
}

async function askTwice(call: Invocation): Promise<Uint8Array> {
  const first = await fromTerminal(call, 'new passphrase: ')
  const second = await fromTerminal(call, 'the same again: ')
  if (compareBytes(first, second) !== 0) throw keyErrors.KEY_PASSPHRASE_WRONG('the two passphrases differ')
  return first
}

function fromTerminal(call: Invocation, prompt: string): Promise<Uint8Array> {
  // Only where a person is looking: a script must not wait for an answer that never comes.
  if (call.terminal.interactive) return askTerminal(prompt, call.signal)
  throw keyErrors.KEY_PASSPHRASE_MISSING('a passphrase is needed and none was given')
}

async function read(call: Invocation): Promise<Uint8Array> {
  const path = stringOption(call, 'passphrase-file')
  if (path !== undefined) {
    const bytes = await nodeFiles.read(path, MAX_BYTES)
    if (bytes === undefined) throw keyErrors.KEY_FILE_MISSING(`the passphrase file ${path} is not there`)
    return firstLine(bytes)
  }
  const command = stringOption(call, 'passphrase-command')
  if (command !== undefined) return firstLine(await runShell(command, 'the passphrase command', MAX_BYTES, call.signal))
  return firstLine(readDescriptor(Number(stringOption(call, 'passphrase-fd'))))
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
