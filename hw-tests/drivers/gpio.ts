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

/** How long a `gpioset` that cannot have its line takes to say so. */
const REFUSAL_MS = 300

/** Arguments that hold a line, for the version that `gpioset --version` printed. Pure. @throws LabError */
export function gpiosetArguments(version: string, chip: string, line: number, level: 0 | 1): readonly string[] {
  const major = /v?(\d+)\.\d+/.exec(version)?.[1]
  if (major === '1') return ['--mode=signal', chip, `${line}=${level}`]
  if (major === '2') return ['--chip', chip, `${line}=${level}`]
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
      const child = spawn('setpriv', [...dies, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
      let told = ''
      child.stderr.on('data', (bytes: Buffer) => {
        told = (told + bytes.toString()).slice(-500)
      })
      const ended = new Promise<string>((resolve) => {
        child.on('error', (error) => resolve(error.message))
        child.on('close', (code) => resolve(`ended with ${code}`))
      })
      const early = await Promise.race([ended, sleep(REFUSAL_MS)])
      if (early !== undefined) throw new LabError(`gpioset does not hold ${chip} line ${line}: ${early} ${told}`.trim())
      holder = child
      now = level
      child.once('close', () => {
        if (holder === child) now = undefined
      })
    },
  }
}
