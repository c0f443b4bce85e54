import { spawn } from 'node:child_process'
import { appendFile, type FileHandle, open, readdir, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { systemReason } from '../../base/errors.ts'
import { printable } from '../../base/printable.ts'
import { MAX_ENVELOPE_BYTES } from '../../keys/dsse.ts'
import { type Paths, readConfig, readHealthPlan } from '../config.ts'
import { Brokers } from '../doors/brokers.ts'
import { deviceErrors } from '../errors.ts'
import { realProbes } from '../health/probes.ts'
import { RESERVE_FILE, withReserve } from '../records/reserve.ts'
import { nodeSys } from '../slots/sys.ts'
import { DataSpace } from '../space/space.ts'
import { kernelSticks } from '../usb/sticks.ts'
import { committedNote } from './committed-note.ts'
import { makeBoot, makeEngine } from './engine.ts'
import { deviceIdFrom } from './identity.ts'
import { forwardClock } from './lost-clock.ts'
import { overUsr } from './over-usr.ts'
import { readPlaces } from './places.ts'
import type { Clock, Level, Ports, Processes, ProcessResult, Watchdog } from './ports.ts'
import { readReach } from './reach.ts'
import { beatOf } from './service-watchdog.ts'
import { channelOnBroker } from './session.ts'
import { realSurroundings } from './surroundings.ts'
import { withEtc } from './with-etc.ts'
import { makeState, withState } from './with-state.ts'

/** The agent's real surroundings: this machine's files, clock, processes and watchdog. */

export async function realPorts(
  paths: Paths,
  out: (line: string) => void,
  options: { readonly daemon: boolean },
): Promise<Ports> {
  const files = nodeFiles
  const config = await readConfig(paths, files)
  const anchor = await files.read(paths.anchor, MAX_ENVELOPE_BYTES)
  if (anchor === undefined) throw deviceErrors.CONFIG_MISSING(`${paths.anchor} does not exist`)
  const given = await readPlaces(paths.places, files)
  const text = async (path: string) => Buffer.from((await files.read(path, 64 * KiB)) ?? '').toString('utf8')
  // Of the data partition: one that cannot be read leaves the device without this name, and not without its agent.
  const deviceId = config.deviceId ?? deviceIdFrom(await text(paths.machineId).catch(() => ''), config.product)
  const reach = () => readReach(config.agent.tls, files, process.env)
  const brokers = new Brokers({
    device: deviceId,
    tls: async () => (await reach()).tls ?? {},
    presence: options.daemon,
  })
  const processes = realProcesses(paths.root)
  const state = makeState(paths, files, processes)
  const space = new DataSpace({
    partition: paths.partition,
    data: paths.data,
    // What cannot be flushed gives no room, which is seen.
    flush: () => processes.run(['sync', '-f', paths.partition], SYNC_MS),
    dropSnapshot: () => state.dropOldest(),
  })
  const journal = options.daemon && toJournal(config.agent.log, process.env)
  const say = both(
    journal ? (line, level) => out(`${PRIORITY[level]}${line}`) : out,
    options.daemon ? config.agent.console : undefined,
  )
  return {
    files: withReserve(files, join(paths.data, RESERVE_FILE), () => space.giveAll()),
    data: paths.data,
    clock: { ...realClock(paths.synchronised), forward: forwardClock(join(paths.run, 'clock'), files, processes) },
    boot: makeBoot(given),
    note: committedNote(paths.data, files),
    engine: withState(
      withEtc(
        makeEngine(paths.data, files, given, reach, brokers, space),
        paths,
        config,
        files,
        processes,
        given,
        space,
      ),
      state,
      paths,
      given,
    ),
    state,
    space,
    root: paths.root,
    etcRules: paths.etcRules,
    brokers,
    processes,
    sticks: kernelSticks(nodeSys(paths.root), processes, paths.run),
    surroundings: realSurroundings(paths.root, processes),
    config,
    startNotes: (await text(join(paths.run, 'notes')).catch(() => '')).split('\n').filter(Boolean).slice(0, MAX_NOTES),
    healthPlan: await readHealthPlan(paths, files),
    ...overUsr(paths, files, processes, await exists(paths.systemd)),
    probes: realProbes(brokers, channelOnBroker(config.agent)),
    deviceId,
    anchor,
    cmdline: await text(paths.cmdline),
    bootId: (await text('/proc/sys/kernel/random/boot_id')).trim(),
    pid: process.pid,
    systemd: await exists(paths.systemd),
    watchdog: options.daemon ? await openWatchdog(config.watchdog, say) : undefined,
    beat: options.daemon ? beatOf(process.env, processes) : undefined,
    random: Math.random,
    // There with --expose-gc, which the launcher gives: left alone, V8 lets the heap of an idle agent grow for hours.
    relax: options.daemon && globalThis.gc !== undefined ? giveBack : undefined,
    say,
  }
}

const MAX_NOTES = 16
/** Slow flash with much to write. */
const SYNC_MS = 120_000

/** From this version on V8 has the collection that it makes when memory is short, for the asking. */
const LAST_RESORT_V8 = 12

/** Code that has not run for a while goes too, and free pages go back to the system. */
function giveBack(): void {
  if (Number.parseInt(process.versions.v8, 10) < LAST_RESORT_V8) globalThis.gc?.()
  else globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}

/** What sd-daemon(3) reads at the head of a line: err, warning, info. */
const PRIORITY: Readonly<Record<Level, string>> = { error: '<3>', warning: '<4>', info: '<6>' }

/** @param env of this process: systemd names the journal's socket there when standard output leads to it */
export function toJournal(
  log: 'auto' | 'journal' | 'plain',
  env: Readonly<Record<string, string | undefined>>,
): boolean {
  return log === 'journal' || (log === 'auto' && env['JOURNAL_STREAM'] !== undefined)
}

/** Lines that may wait for a console that does not take them; more are dropped. */
const MAX_WAITING = 100

/** Says each line, and copies it to the console in order. A console that is gone or stuck never stops an update. */
function both(say: (line: string, level: Level) => void, copyTo: string | undefined): Ports['say'] {
  let waiting = 0
  let turn = Promise.resolve()
  return (line, level = 'info') => {
    say(line, level)
    if (copyTo === undefined) return
    if (waiting >= MAX_WAITING) return
    waiting++
    turn = turn
      .then(() => appendFile(copyTo, `${printable(line)}\r\n`))
      .catch(() => undefined)
      .finally(() => {
        waiting--
      })
  }
}

function realClock(synchronised: string): Clock {
  return {
    // Of this boot, and not of this process: a record may tell the next one how long something has lasted.
    now: () => Number(process.hrtime.bigint() / 1000n) / 1000,
    wall: () => new Date(),
    sleep: async (ms, signal) => {
      await sleep(ms, undefined, signal === undefined ? {} : { signal })
    },
    synchronised: () => exists(synchronised),
  }
}

const SAID_BYTES = 400
/** Where an init sets none. */
const DEFAULT_PATH = '/usr/sbin:/usr/bin:/sbin:/bin'

/** @param root prefix for checks and for the programs that reboot: in tests nothing of this machine is run */
export function realProcesses(root: string): Processes {
  const place = (program: string) => (root === '' || program.startsWith('/') ? program : join(root, 'usr/bin', program))
  return {
    run: ([program, ...args], ms, signal, more = {}) =>
      new Promise<ProcessResult>((resolve) => {
        // A group of its own: a check that hangs is ended with everything it started.
        const env = { ...process.env, PATH: process.env['PATH'] ?? DEFAULT_PATH, ...more }
        const child = spawn(place(program), args, { detached: true, stdio: ['ignore', 'pipe', 'pipe'], env })
        // The agent's place in the queue of those that are ended when memory is short is its own.
        if (root === '' && child.pid !== undefined)
          void writeFile(`/proc/${child.pid}/oom_score_adj`, '0').catch(() => undefined)
        let said = Buffer.alloc(0)
        let timedOut = false
        const end = () => {
          try {
            if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
          } catch {
            // Gone already.
          }
        }
        const timer = setTimeout(() => {
          timedOut = true
          end()
        }, ms)
        signal?.addEventListener('abort', end, { once: true })
        const hear = (piece: Buffer) => {
          said = Buffer.concat([said, piece]).subarray(-SAID_BYTES)
        }
        child.stdout.on('data', hear)
        child.stderr.on('data', hear)
        const done = (exit: number | undefined, words?: string) => {
          clearTimeout(timer)
          signal?.removeEventListener('abort', end)
          resolve({ exit, timedOut, said: words ?? said.toString('utf8') })
          // Something it left running may hold the pipes open for ever.
          child.stdout.destroy()
          child.stderr.destroy()
        }
        child.on('error', (error) => done(undefined, `cannot be run: ${systemReason(error)}`))
        // "exit" and a moment for the last words, not "close": see above.
        child.on('exit', (code) => setImmediate(() => done(code ?? undefined)))
      }),
    glob: async (pattern) => {
      const path = root === '' ? pattern : join(root, pattern)
      const wild = basename(path)
      if (!wild.includes('*')) return (await isExecutable(path)) ? [path] : []
      const parts = wild.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
      const matcher = new RegExp(`^${parts.join('.*')}$`)
      const names = await readdir(dirname(path)).catch(() => [])
      const found: string[] = []
      for (const name of names.sort()) {
        const full = join(dirname(path), name)
        if (!name.startsWith('.') && matcher.test(name) && (await isExecutable(full))) found.push(full)
      }
      return found
    },
  }
}

async function isExecutable(path: string): Promise<boolean> {
  try {
    const found = await stat(path)
    return found.isFile() && (found.mode & 0o111) !== 0
  } catch {
    return false
  }
}

export async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  )
}

/** Opening a watchdog starts it; "V" before closing stops it, where the hardware allows that. */
export async function openWatchdog(
  path: string | undefined,
  say: (line: string) => void,
): Promise<Watchdog | undefined> {
  if (path === undefined) return undefined
  let device: FileHandle
  try {
    device = await open(path, 'r+')
  } catch (error) {
    // Busy: systemd or another program feeds it already, and resets a hung system just as well.
    say(`bistable: the watchdog ${path} is not used: ${systemReason(error)}`)
    return undefined
  }
  return {
    feed: async () => {
      await device.write('1')
    },
    disarm: async () => {
      await device.write('V')
      await device.close()
    },
  }
}
