import { spawn } from 'node:child_process'
import { systemReason } from '../base/errors.ts'

/** Runs a program with bounds on its time and on what it says; the edge of backends that are other programs. */
export type RunBounded = (
  command: readonly [string, ...string[]],
  input: string,
  timeMs: number,
) => Promise<{
  /** Undefined when it could not be run, was ended by a signal, by its time limit, or for saying too much. */
  readonly exit: number | undefined
  readonly out: string
  /** For people: the last of what it complained, or why it was ended. */
  readonly said: string
}>

const MAX_OUT = 64 * 1024
const MAX_SAID = 400

/** Never rejects. The program gets a group of its own and is ended with everything it started. */
export const runBounded: RunBounded = ([program, ...args], input, timeMs) =>
  new Promise((resolve) => {
    const child = spawn(program, args, { detached: true, stdio: 'pipe' })
    let out = Buffer.alloc(0)
    let said = Buffer.alloc(0)
    let ended: string | undefined
    const end = (why: string) => {
      ended ??= why
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
      } catch {
        // Gone already.
      }
    }
    const timer = setTimeout(() => end(`ended after ${timeMs} ms`), timeMs)
    child.stdout.on('data', (piece: Buffer) => {
      out = Buffer.concat([out, piece])
      if (out.length > MAX_OUT) end(`ended: it said more than ${MAX_OUT} bytes`)
    })
    child.stderr.on('data', (piece: Buffer) => {
      said = Buffer.concat([said, piece]).subarray(-MAX_SAID)
    })
    // A program that does not read its input is no error of ours.
    child.stdin.on('error', () => undefined)
    child.stdin.end(input)
    const done = (exit: number | undefined, words: string) => {
      clearTimeout(timer)
      child.stdout.destroy()
      child.stderr.destroy()
      resolve({ exit: ended === undefined ? exit : undefined, out: out.toString('utf8'), said: ended ?? words })
    }
    child.on('error', (error) => done(undefined, `cannot be run: ${systemReason(error)}`))
    // A moment for the last words, then whatever it left running in its group goes too.
    child.on('exit', (code) =>
      setTimeout(() => {
        const words = said.toString('utf8').trim()
        done(code ?? undefined, words)
        try {
          if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
        } catch {
          // Nothing was left.
        }
      }, 20),
    )
  })
