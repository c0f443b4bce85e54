import { spawn } from 'node:child_process'
import { keyErrors } from './errors.ts'

/** Longest wait for a command: a person may have to find a token and touch it. */
const DEADLINE_MS = 10 * 60 * 1000

/**
 * Runs a shell command that somebody put on our command line, and returns what it prints: a passphrase, an access
 * token, a signature. Its standard error goes to ours. Its standard input is `input`, or ours.
 * @param what for messages: "the passphrase command"
 * @param limit most bytes that it may print
 * @throws SIGNER_FAILED when it ends badly, prints more, or takes longer than ten minutes
 */
export async function runShell(
  command: string,
  what: string,
  limit: number,
  signal: AbortSignal,
  input?: Uint8Array,
): Promise<Uint8Array> {
  const stop = AbortSignal.any([signal, AbortSignal.timeout(DEADLINE_MS)])
  const child = spawn('/bin/sh', ['-c', command], {
    stdio: [input === undefined ? 'inherit' : 'pipe', 'pipe', 'inherit'],
    signal: stop,
  })
  // What the shell started may outlive it and hold the pipe open.
  stop.addEventListener('abort', () => child.stdout?.destroy(), { once: true })
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', (code, by) => resolve(code === 0 ? '' : `it ended with ${code ?? by}`))
  })
  // A command may end without reading its input; what counts is what it prints and how it ends.
  child.stdin?.on('error', () => {})
  child.stdin?.end(input)
  const pieces: Buffer[] = []
  let length = 0
  try {
    for await (const piece of child.stdout ?? []) {
      length += piece.length
      if (length > limit) break
      pieces.push(piece)
    }
  } catch {
    // The stream dies with the child, whose end says why.
  }
  if (length > limit) child.kill()
  const failure = await ended
  if (signal.aborted) throw signal.reason
  if (length > limit) throw keyErrors.SIGNER_FAILED(`${what} printed more than ${limit} bytes`)
  if (failure !== '') throw keyErrors.SIGNER_FAILED(`${what} failed: ${failure}`)
  return new Uint8Array(Buffer.concat(pieces))
}
