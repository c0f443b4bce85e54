import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'

/** Runs programs and measures them: wall time, processor time, memory. */

export interface Measured {
  /** Wall time, from before the process starts to after it ended. */
  readonly seconds: number
  /** User and system time of the process and the children that it waited for. */
  readonly cpuSeconds: number
  /**
   * Peak memory of the process and all its descendants: every 20 ms the high-water marks of resident memory (VmHWM) of
   * those alive are added up, and the largest sum counts. Shared pages count in each process and peaks that were not
   * simultaneous are added, so this is an upper bound, but for what a process takes in its last 20 ms.
   */
  readonly peakMiB: number
  /** The last 16 KiB of standard output. */
  readonly out: string
}

export interface RunOptions {
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
}

const SAMPLE_MS = 20
const KEEP = 16 * 1024
/** Kernel ticks per second in /proc/PID/stat; 100 on every architecture that Node.js runs on. */
const TICKS = 100

export const toolEnv = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8' }

/** Runs a program to its end. @throws Error with its last words when it does not end with 0 */
export async function measure(command: string, args: readonly string[], options: RunOptions = {}): Promise<Measured> {
  const cpuBefore = childrenTicks('self')
  const start = performance.now()
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...toolEnv, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  })
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out = (out + text).slice(-KEEP)
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err = (err + text).slice(-KEEP)
  })
  let peak = 0
  const sample = (): void => {
    if (child.pid !== undefined) peak = Math.max(peak, treeHighWater(child.pid))
  }
  const timer = setInterval(sample, SAMPLE_MS)
  const ended = await new Promise<{ readonly how: string; readonly at: number }>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ how: signal ?? String(code), at: performance.now() }))
  }).finally(() => clearInterval(timer))
  if (ended.how !== '0') throw new Error(`${command} ${args.join(' ')} ended with ${ended.how}:\n${err}${out}`)
  return {
    seconds: (ended.at - start) / 1000,
    cpuSeconds: (childrenTicks('self') - cpuBefore) / TICKS,
    peakMiB: peak / 1024,
    out,
  }
}

/** As `measure`, when only the output is wanted. */
export async function tool(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  return (await measure(command, args, options)).out
}

/** Several runs in a row as one: times added, the largest peak. */
export function together(parts: readonly Measured[]): Measured {
  return {
    seconds: parts.reduce((sum, part) => sum + part.seconds, 0),
    cpuSeconds: parts.reduce((sum, part) => sum + part.cpuSeconds, 0),
    peakMiB: Math.max(...parts.map((part) => part.peakMiB)),
    out: parts.at(-1)?.out ?? '',
  }
}

/** Processor ticks of a process's ended children. */
function childrenTicks(pid: number | 'self'): number {
  const [user = 0, system = 0] = statFields(pid).slice(13, 15)
  return user + system
}

/** Processor ticks of a running process and its ended children, so far. */
export function processCpuSeconds(pid: number): number {
  return (
    statFields(pid)
      .slice(11, 15)
      .reduce((sum, ticks) => sum + ticks, 0) / TICKS
  )
}

/** The numbers of /proc/PID/stat from the third field (state) on; the second may hold spaces. */
function statFields(pid: number | 'self'): number[] {
  const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  return text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
}

/** KiB: VmHWM of a process and its descendants, added up. */
export function treeHighWater(pid: number): number {
  let sum = 0
  try {
    sum += Number(/^VmHWM:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0)
    for (const task of readdirSync(`/proc/${pid}/task`))
      for (const child of readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1').split(' '))
        if (child !== '') sum += treeHighWater(Number(child))
  } catch {
    // Ended meanwhile.
  }
  return sum
}
