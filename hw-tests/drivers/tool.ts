import { spawn } from 'node:child_process'
import { LabError } from '../harness/lab-error.ts'

/** Programs of the lab, run with a limit on time and output. A program that fails is a broken lab, never a failed test. */

const MOST_OUTPUT = 64 * 1024
export const TOOL_MS = 20_000

/** Runs a program and returns its stdout. No shell: arguments are passed as they are. @throws LabError */
export function runTool(argv: readonly string[], timeoutMs = TOOL_MS): Promise<string> {
  const [program, ...args] = argv
  if (program === undefined) return Promise.reject(new LabError('a driver has an empty command'))
  const line = argv.join(' ')
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: timeoutMs, killSignal: 'SIGKILL' })
    let out = ''
    let told = ''
    child.stdout.on('data', (bytes: Buffer) => {
      out = (out + bytes.toString()).slice(0, MOST_OUTPUT)
    })
    child.stderr.on('data', (bytes: Buffer) => {
      told = (told + bytes.toString()).slice(-2048)
    })
    child.on('error', (error) => reject(new LabError(`\`${line}\` does not start: ${error.message}`, { cause: error })))
    child.on('close', (code, signal) => {
      if (code === 0) return resolve(out)
      const how = signal === null ? `ended with ${code}` : `was stopped (${signal}) after ${timeoutMs / 1000} s`
      reject(new LabError(`\`${line}\` ${how}: ${(told || out).trim().slice(-500)}`))
    })
  })
}
