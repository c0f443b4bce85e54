import { type ChildProcess, spawn } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { LabError } from '../harness/lab-error.ts'
import { runTool } from './tool.ts'

/**
 * A GPIO line of this machine, driven by libgpiod's `gpioset`, 1.x or 2.x. A line keeps its level only as long as somebody
 * holds it, so a process holds it until `release`.
 */
export interface GpioLine {
  set(level: 0 | 1): Promise<void>
  /** The level it was set to last, or undefined before. */
  level(): 0 | 1 | undefined
  /** Nobody drives the line any more: an opto-relay with a pull resistor then goes to its resting position. */
  release(): Promise<void>
}

/** How long a `gpioset` 1.x that cannot have its line takes to say so: it says nothing when it has it. */
const REFUSAL_MS = 1_000
/** How long one of 2.x takes to say that it has it. */
const BANNER_MS = 10_000

/** Arguments that hold a line, for the version that `gpioset --version` printed. Pure. @throws LabError */
export function gpiosetArguments(version: string, chip: string, line: number, level: 0 | 1): readonly string[] {
  const major = /v?(\d+)\.\d+/.exec(version)?.[1]
  if (major === '1') return ['--mode=signal', chip, `${line}=${level}`]
  if (major === '2') return ['--banner', '--chip', chip, `${line}=${level}`]
  throw new LabError(`gpioset printed the version "${version.trim().slice(0, 60)}", 1.x or 2.x was wanted`)
}

export function gpioLine(chip: string, line: number, program = 'gpioset'): GpioLine {
  let holder: ChildProcess | undefined
  let now: 0 | 1 | undefined
  const release = async () => {
    const child = holder
    holder = undefined
    now = undefined
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise<void>((resolve) => child.once('close', () => resolve()))
    child.kill('SIGTERM')
    await gone
  }
  return {
    level: () => now,
    release,
    set: async (level) => {
      const args = gpiosetArguments(await runTool([program, '--version']), chip, line, level)
      await release()
      // A run that is killed lets go of its lines: else nobody could have them.
      const dies = ['--pdeathsig', 'TERM', '--', program]
      const child = spawn('setpriv', [...dies, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
      let told = ''
      child.stderr.on('data', (bytes: Buffer) => {
        told = (told + bytes.toString()).slice(-500)
      })
      const ended = new Promise<string>((resolve) => {
        child.on('error', (error) => resolve(error.message))
        child.on('close', (code) => resolve(`ended with ${code}`))
      })
      const speaks = args.includes('--banner')
      const held = new Promise<undefined>((resolve) => child.stdout.once('data', () => resolve(undefined)))
      const silent = sleep(speaks ? BANNER_MS : REFUSAL_MS, speaks ? 'it does not say that it does' : undefined)
      const early = await Promise.race([ended, held, silent])
      if (early === undefined) {
        // More than its banner is not read.
        child.stdout.resume()
      } else {
        child.kill('SIGKILL')
        throw new LabError(`gpioset does not hold ${chip} line ${line}: ${early} ${told}`.trim())
      }
      holder = child
      now = level
      child.once('close', () => {
        if (holder === child) now = undefined
      })
    },
  }
}
