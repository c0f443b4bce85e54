import { spawn } from 'node:child_process'
import { LabError } from '../harness/lab-error.ts'

/** Programs of the lab, run with a limit on time and output. A program that fails is a broken lab, never a failed test. */

const MOST_OUTPUT = 64 * 1024
export const TOOL_MS = 20_000

/** What a program that has ended may still have in its pipe: children that it leaves behind hold it open. */
const LAST_WORDS_MS = 500

/**
 * Runs a program and returns its stdout. No shell: arguments are passed as they are. `secrets` are among them and in no error.
 * @throws LabError
 */
export function runTool(
  argv: readonly string[],
  timeoutMs = TOOL_MS,
  secrets: readonly string[] = [],
): Promise<string> {
  const [program, ...args] = argv
  if (program === undefined) return Promise.reject(new LabError('a driver has an empty command'))
  const hidden = (text: string) =>
    secrets.reduce((shown, secret) => (secret === '' ? shown : shown.replaceAll(secret, '***')), text)
  const line = hidden(argv.join(' '))
  return new Promise((resolve, reject) => {
    // A group of its own: what it has started ends with it.
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    const clock = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    }, timeoutMs)
    let out = ''
    let told = ''
    child.stdout.on('data', (bytes: Buffer) => {
      out = (out + bytes.toString()).slice(0, MOST_OUTPUT)
    })
    child.stderr.on('data', (bytes: Buffer) => {
      told = (told + bytes.toString()).slice(-2048)
    })
    child.on('error', (error) => {
      clearTimeout(clock)
      reject(new LabError(`\`${line}\` does not start: ${error.message}`, { cause: error }))
    })
    const ended = (code: number | null, signal: NodeJS.Signals | null) => {
      if (code === 0) return resolve(out)
      const how = signal === null ? `ended with ${code}` : `was stopped (${signal}) after ${timeoutMs / 1000} s`
      reject(
        new LabError(
          `\`${line}\` ${how}: ${hidden(told || out)
            .trim()
            .slice(-500)}`,
        ),
      )
    }
    child.on('exit', (code, signal) => {
      clearTimeout(clock)
      setTimeout(() => {
        child.stdout.destroy()
        child.stderr.destroy()
      }, LAST_WORDS_MS).unref()
      child.on('close', () => ended(code, signal))
    })
  })
}
