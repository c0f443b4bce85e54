import { createHash } from 'node:crypto'
import { open, stat } from 'node:fs/promises'
import { DutError, LabError } from './lab-error.ts'
import type { CommandOptions, CommandResult } from './shell.ts'

/**
 * Files over the console, in pieces whose SHA-256 is compared on both sides: a piece that does not check is sent again. Slow (some
 * kilobytes per second on a real line) and always there. Needs what the framed shell needs, and dd.
 */

export interface ByteShell {
  run(command: string, options?: CommandOptions): Promise<CommandResult>
  runBytes(command: string, options?: CommandOptions): Promise<{ readonly code: number; readonly bytes: Buffer }>
}

const DOWN = 48 * 1024
const UP = 3 * 1024
const TRIES = 4
const PIECE_MS = 120_000

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const quoted = (path: string) => {
  if (!/^[\x20-\x7e]{1,200}$/.test(path)) throw new TypeError(`a path of the device is printable ASCII: ${path}`)
  return `'${path.replaceAll("'", "'\\''")}'`
}

async function said(shell: ByteShell, command: string, signal: AbortSignal | undefined): Promise<string> {
  const { code, output } = await shell.run(command, { timeoutMs: PIECE_MS, ...(signal && { signal }) })
  if (code !== 0) throw new DutError(`\`${command.slice(0, 80)}\` ended with ${code}: ${output.slice(-300)}`)
  return output.trim()
}

export interface TransferOptions {
  readonly signal?: AbortSignal
}

/** A file of the device, at most `atMost` bytes. @throws DutError */
export async function getFile(
  shell: ByteShell,
  path: string,
  atMost: number,
  { signal }: TransferOptions = {},
): Promise<Buffer> {
  const from = quoted(path)
  const size = Number(await said(shell, `wc -c <${from}`, signal))
  if (!(size <= atMost)) throw new DutError(`${path} has ${size} bytes, at most ${atMost} were wanted`)
  const pieces: Buffer[] = []
  for (let at = 0; at * DOWN < size; at++) {
    const read = `dd if=${from} bs=${DOWN} skip=${at} count=1 2>/dev/null`
    const { code, bytes } = await shell.runBytes(read, { timeoutMs: PIECE_MS, ...(signal && { signal }) })
    if (code !== 0) throw new DutError(`${path} cannot be read: dd ended with ${code}`)
    pieces.push(bytes)
  }
  const whole = Buffer.concat(pieces)
  const wanted = (await said(shell, `sha256sum <${from}`, signal)).slice(0, 64)
  if (sha256(whole) !== wanted) throw new DutError(`${path} changed while it was read`)
  return whole
}

/** A file of this machine goes to the device; the target appears whole or not at all. @throws DutError, LabError */
export async function putFile(
  shell: ByteShell,
  local: string,
  path: string,
  { signal }: TransferOptions = {},
): Promise<void> {
  const { size } = await stat(local)
  const to = quoted(path)
  const partial = quoted(`${path}.part`)
  await said(shell, `: >${partial}`, signal)
  await using file = await open(local, 'r')
  const hash = createHash('sha256')
  const piece = Buffer.alloc(UP)
  for (let at = 0; at < size; at += UP) {
    const { bytesRead } = await file.read(piece, 0, UP, at)
    const bytes = piece.subarray(0, bytesRead)
    hash.update(bytes)
    // The line to the device may lose bytes: what was written is read again and compared.
    const write = `printf %s '${bytes.toString('base64')}' | base64 -d | dd of=${partial} bs=${UP} seek=${at / UP} conv=notrunc 2>/dev/null`
    const read = `dd if=${partial} bs=${UP} skip=${at / UP} count=1 2>/dev/null | sha256sum`
    for (let tries = 1; ; tries++) {
      const sum = await said(shell, `${write}; ${read}`, signal)
      if (sum.slice(0, 64) === sha256(bytes)) break
      if (tries === TRIES) throw new LabError(`the console loses bytes: ${path} at ${at}, ${TRIES} times`)
    }
  }
  const wanted = hash.digest('hex')
  const sum = await said(shell, `sha256sum <${partial}`, signal)
  if (sum.slice(0, 64) !== wanted) throw new DutError(`${path} is not on the device as it was sent`)
  await said(shell, `sync; mv ${partial} ${to}`, signal)
}
