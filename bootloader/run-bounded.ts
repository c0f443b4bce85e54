import { spawn } from 'node:child_process'
import { systemReason } from '../base/errors.ts'

/** Runs a program with bounds on its time and on what it says; the edge of backends that are other programs. */
export type RunBounded = (
  command: readonly [string, ...string[]],
  input: string,
  timeMs: number,
  /** `cwd`: the folder that it runs in. `maxOut`: bytes that it may print (64 KiB). */
  options?: { readonly cwd?: string; readonly maxOut?: number },
) => Promise<{
  /** Undefined when it could not be run, was ended by a signal, by its time limit, or for saying too much. */
  readonly exit: number | undefined
  readonly out: string
  /** For people: the last of what it complained, or why it was ended. */
  readonly said: string
}>

const MAX_OUT = 64 * 1024
const MAX_SAID = 400
/** For words that are in the pipe when the program has ended. */
const LINGER_MS = 1000

/** Never rejects. The program gets a group of its own and is ended with everything it started. */
export const runBounded: RunBounded = ([program, ...args], input, timeMs, { cwd, maxOut = MAX_OUT } = {}) =>
  new Promise((resolve) => {
    const child = spawn(program, args, { cwd, detached: true, stdio: 'pipe' })
    const pieces: Buffer[] = []
    let length = 0
    let said = Buffer.alloc(0)
    let ended: string | undefined
    const killAll = () => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
      } catch {
        // Gone already.
      }
    }
    const end = (why: string) => {
      ended ??= why
      killAll()
    }
    const timer = setTimeout(() => end(`ended after ${timeMs} ms`), timeMs)
    child.stdout.on('data', (piece: Buffer) => {
      length += piece.length
      if (length > maxOut) end(`ended: it said more than ${maxOut} bytes`)
      else pieces.push(piece)
    })
    child.stderr.on('data', (piece: Buffer) => {
      said = Buffer.concat([said, piece]).subarray(-MAX_SAID)
    })
    // A program that does not read its input is no error of ours.
    child.stdin.on('error', () => undefined)
    child.stdin.end(input)
    let lingering: NodeJS.Timeout | undefined
    const done = (exit: number | undefined, words: string) => {
      clearTimeout(timer)
      clearTimeout(lingering)
      child.stdout.destroy()
      child.stderr.destroy()
      const out = Buffer.concat(pieces).toString('utf8')
      resolve({ exit: ended === undefined ? exit : undefined, out, said: ended ?? words })
    }
    child.on('error', (error) => done(undefined, `cannot be run: ${systemReason(error)}`))
    // Its last words are read to their end, which comes when nobody holds the pipes any more. What it left running in its
    // group goes a moment later; what left the group and holds them still is not waited for.
    child.on('exit', (code) => {
      const last = () => {
        killAll()
        done(code ?? undefined, said.toString('utf8').trim())
      }
      child.on('close', last)
      lingering = setTimeout(() => {
        killAll()
        lingering = setTimeout(last, LINGER_MS)
      }, 20)
    })
  })
