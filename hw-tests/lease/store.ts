import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { chmod, mkdir, open, readFile, rename } from 'node:fs/promises'
import { tmpdir, uptime } from 'node:os'
import { join } from 'node:path'
import { LabError } from '../harness/lab-error.ts'
import {
  type Answer,
  acquire,
  type Holder,
  type Lease,
  type Leases,
  readLeases,
  release,
  renew,
  type Wish,
} from './lease.ts'

/** Where leases live: a file on this machine, or a lease server. */
export interface LeaseStore {
  acquire(wish: Wish): Promise<Answer>
  renew(place: string, token: string, ttlMs: number): Promise<Answer>
  release(place: string, token: string): Promise<void>
  list(): Promise<Leases>
}

/** Folder of leases and quarantines of this machine, for all its users: `HIL_LOCKS`, or one in the temporary folder. */
export function lockFolder(env: Readonly<Record<string, string | undefined>>): string {
  return env['HIL_LOCKS'] ?? join(tmpdir(), 'bistable-hil')
}

const GUARD_MS = 10_000
const MOST_BYTES = 1024 * 1024

/**
 * Milliseconds since this machine was started, asleep or not. Leases count by it: when somebody sets the clock, no lease runs
 * out early, and none lasts longer.
 */
export function sinceBoot(): number {
  return Math.round(1000 * uptime())
}

/**
 * Leases in one file. Every change is made under a lock of the kernel (flock), which a process that dies lets go of by
 * dying; the file is replaced whole, so a reader sees the old or the new.
 */
export function localStore(folder: string, now: () => number = sinceBoot): LeaseStore {
  const file = join(folder, 'leases.json')
  const read = async (): Promise<Leases> => {
    const text = await readFile(file, 'utf8').catch(() => '{}')
    const leases = text.length <= MOST_BYTES ? readLeases(parsed(text)) : undefined
    // Nobody may take a board because a file could not be read.
    if (leases === undefined) throw new LabError(`${file} holds no leases; remove it if no run is going on`)
    return leases
  }
  const change = (decide: (leases: Leases) => Answer): Promise<Answer> =>
    guarded(folder, async () => {
      const before = await read()
      const answer = decide(before)
      if (answer.leases !== before) await replace(file, JSON.stringify(answer.leases, null, 2))
      return answer
    })
  /** With times of the wall clock, for people. */
  const dated = <T extends Lease | undefined>(lease: T): T => {
    const shift = Date.now() - now()
    return lease && { ...lease, since: lease.since + shift, expires: lease.expires + shift }
  }
  const told = (answer: Answer): Answer =>
    answer.granted
      ? { ...answer, lease: dated(answer.lease), ...(answer.instead && { instead: dated(answer.instead) }) }
      : { ...answer, held: dated(answer.held) }
  return {
    acquire: async (wish) => told(await change((leases) => acquire(leases, wish, now(), isGone))),
    renew: async (place, token, ttlMs) => told(await change((leases) => renew(leases, place, token, ttlMs, now()))),
    release: async (place, token) => {
      await change((leases) => ({ granted: false, held: undefined, leases: release(leases, place, token) }))
    },
    list: async () => Object.fromEntries(Object.entries(await read()).map(([place, lease]) => [place, dated(lease)])),
  }
}

/** Replaces a file as a whole, flushed. */
export async function replace(file: string, text: string): Promise<void> {
  // In a folder that others may write to: a name that nobody can lay a link under before.
  const partial = `${file}.${randomBytes(8).toString('hex')}.new`
  await using handle = await open(partial, 'wx', 0o666)
  await handle.writeFile(`${text}\n`)
  await handle.sync()
  await rename(partial, file)
}

/** Acts alone among all processes of this machine that use the folder. @throws LabError when it stays locked for 10 s */
export async function guarded<T>(folder: string, act: () => Promise<T>): Promise<T> {
  // Whoever may use the boards of this machine may take part: replace the file that another user wrote last, and lift a quarantine.
  // A folder that was there already is left as it is: it may be somebody's own.
  if ((await mkdir(folder, { recursive: true })) !== undefined) await chmod(folder, 0o777).catch(() => {})
  // The child holds the lock until its stdin closes, which the kernel does for us if this process dies.
  const args = ['--timeout', String(GUARD_MS / 1000), join(folder, 'guard'), 'sh', '-c', 'echo held; cat']
  const child = spawn('flock', args, { stdio: ['pipe', 'pipe', 'ignore'] })
  const ended = new Promise<void>((resolve) => child.on('close', () => resolve()))
  try {
    await new Promise<void>((resolve, reject) => {
      child.on('error', (cause) => reject(new LabError('the program flock is missing', { cause })))
      child.on('close', () => reject(new LabError(`${folder} stays locked by another process`)))
      child.stdout.once('data', () => resolve())
    })
    return await act()
  } finally {
    child.stdin.on('error', () => {})
    child.stdin.end()
    await ended
  }
}

/** This process, as a holder of leases. */
export function thisHolder(): Holder {
  return { bootId: bootId(), pidSpace: pidSpace(), pid: process.pid, started: startOf(process.pid) ?? '' }
}

/**
 * Whether a process is no more: another boot, no such number, or a number that was given out again. What cannot be told is not
 * gone, and runs out: a process of another container, or one that /proc hides from this user.
 */
export function isGone(holder: Holder, startedAt: (pid: number) => string | undefined = startOf): boolean {
  if (holder.bootId !== bootId()) return true
  if (holder.pidSpace !== pidSpace()) return false
  const started = startedAt(holder.pid)
  return started === undefined ? !exists(holder.pid) : started !== holder.started
}

function exists(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // EPERM: somebody else's.
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

function pidSpace(): string {
  return readlinkSync('/proc/self/ns/pid')
}

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

function startOf(pid: number): string | undefined {
  try {
    // The second field is a name in brackets that may hold anything, so it is counted from its end.
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ')[19]
  } catch {
    return undefined
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
