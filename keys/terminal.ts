import { closeSync, openSync, writeSync } from 'node:fs'
import { ReadStream } from 'node:tty'
import { keyErrors } from './errors.ts'

const MOST = 1024

/**
 * Asks the person at the controlling terminal and shows nothing of what is typed, whatever standard input and output
 * are. Enter ends, Backspace takes back, Ctrl-U clears, Ctrl-C stops.
 * @throws KEY_PASSPHRASE_MISSING without a terminal, or on Ctrl-C
 */
export async function askTerminal(prompt: string, signal: AbortSignal): Promise<Uint8Array> {
  let descriptor: number
  try {
    descriptor = openSync('/dev/tty', 'r+')
  } catch (cause) {
    throw keyErrors.KEY_PASSPHRASE_MISSING('a passphrase is needed, and there is no terminal to ask at', { cause })
  }
  let terminal: ReadStream
  try {
    terminal = new ReadStream(descriptor)
  } catch (cause) {
    closeSync(descriptor)
    throw keyErrors.KEY_PASSPHRASE_MISSING('a passphrase is needed, and there is no terminal to ask at', { cause })
  }
  terminal.setRawMode(true)
  try {
    writeSync(descriptor, prompt)
    return await readLine(terminal, signal)
  } finally {
    terminal.setRawMode(false)
    writeSync(descriptor, '\n')
    terminal.destroy()
  }
}

function readLine(terminal: ReadStream, signal: AbortSignal): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const typed: number[] = []
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
    terminal.on('error', reject)
    terminal.on('end', () => reject(keyErrors.KEY_PASSPHRASE_MISSING('the terminal went away')))
    terminal.on('data', (bytes: Buffer) => {
      for (const byte of bytes) {
        if (byte === 0x03) return reject(keyErrors.KEY_PASSPHRASE_MISSING('stopped by Ctrl-C'))
        if (byte === 0x0d || byte === 0x0a || byte === 0x04) return resolve(Uint8Array.from(typed))
        if (byte === 0x15) typed.length = 0
        else if (byte === 0x7f || byte === 0x08) removeCharacter(typed)
        // One over the limit is enough for the refusal that follows.
        else if (typed.length <= MOST) typed.push(byte)
      }
    })
  })
}

/** Takes back one UTF-8 character: its continuation bytes, then its first byte. */
function removeCharacter(typed: number[]): void {
  while (((typed.at(-1) ?? 0) & 0xc0) === 0x80) typed.pop()
  typed.pop()
}
