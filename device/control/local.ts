import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isAddress } from '../../base/address.ts'
import { KiB } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { useHashCrew } from '../../base/hash-crew.ts'
import { refuse } from '../../bootloader/machine.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { activateEarly } from '../agent/addons.ts'
import { parseBootLine } from '../agent/cmdline.ts'
import { Core, failureFrom } from '../agent/core.ts'
import { makeBoot } from '../agent/engine.ts'
import { runAgent, ticker } from '../agent/loop.ts'
import { operate } from '../agent/operations.ts'
import { readPlaces } from '../agent/places.ts'
import type { Ports } from '../agent/ports.ts'
import { exists, realPorts, realProcesses } from '../agent/real.ts'
import { type Status, statusOf } from '../agent/status.ts'
import type { Paths } from '../config.ts'
import { readAhead } from '../doors/read-ahead.ts'
import { deviceErrors } from '../errors.ts'
import type { Failure } from '../records/record.ts'
import { keepReserve, RESERVE_FILE } from '../records/reserve.ts'
import { ask, FORBIDDEN, type Message, NOBODY } from './client.ts'
import { serveControl } from './server.ts'

/** Does an operation where it belongs: in the process that holds the socket, or here, holding it meanwhile. */
export async function answer(
  paths: Paths,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  onMessage: (message: Message) => void,
  signal: AbortSignal,
): Promise<unknown> {
  const answered = await ask(paths.control, verb, args, onMessage, signal)
  if (answered === FORBIDDEN) throw deviceErrors.AGENT_NEEDS_ROOT(`only root may ${verb}`)
  if (answered !== NOBODY) return answered
  if (process.getuid?.() !== 0 && paths.root === '') throw deviceErrors.AGENT_NEEDS_ROOT(`only root may ${verb}`)
  const ready = verb === 'install' ? getReady(args) : undefined
  try {
    return await takeOver(paths, verb, args, onMessage, signal)
  } finally {
    ready?.()
  }
}

/** What an install of a file will want, begun while trust and records are read: the second thread, and the file's bytes. */
function getReady({ source }: Readonly<Record<string, unknown>>): (() => void) | undefined {
  if (typeof source !== 'string' || isAddress(source)) return undefined
  const giveBack = useHashCrew()
  const stop = readAhead(source)
  return () => {
    giveBack()
    // Not waited for: a read that the kernel does not end must not keep the answer back.
    void stop()
  }
}

/** Does an operation in this process, as the one that holds the socket. */
async function takeOver(
  paths: Paths,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  onMessage: (message: Message) => void,
  signal: AbortSignal,
): Promise<unknown> {
  // While the lock is taken.
  const ports = realPorts(paths, (line) => onMessage({ line }), { daemon: false })
  const work = async (core: Core) => {
    const done = new AbortController()
    // An install has deadlines whoever runs it.
    const ticking = verb === 'install' || verb === 'plan' || verb === 'usb' ? ticker(core, done.signal) : undefined
    try {
      return await operate(core, verb, args, onMessage, signal)
    } finally {
      done.abort()
      await ticking
    }
  }
  return await underLock(paths, ports, work, verb !== 'repair')
}

/** Status from the agent, or straight from the records: a reader needs no lock. */
export async function answerStatus(paths: Paths, signal: AbortSignal): Promise<Status> {
  for (const socket of [paths.control, paths.status]) {
    const answered = await ask(socket, 'status', {}, () => undefined, signal)
    if (answered !== NOBODY && answered !== FORBIDDEN) return answered as Status
  }
  const ports = await realPorts(paths, () => undefined, { daemon: false })
  return await statusOf(await Core.open(ports, { readOnly: true }))
}

/** A command may hold the lock when the agent starts: seconds, rarely more. */
const LOCK_TRIES = 30
const LOCK_PAUSE_MS = 2000

/**
 * Puts add-ons over /usr early in a start, before the agent and whatever needs them. Takes no lock and writes no record: the
 * agent judges anew when it comes up.
 */
export async function activateAddons(paths: Paths): Promise<readonly string[]> {
  if (await exists(paths.control)) return ["addons are the agent's"]
  const ports = await realPorts(paths, () => undefined, { daemon: false })
  return await activateEarly(await Core.open(ports, { readOnly: true }))
}

/** The daemon. Ends when the signal is aborted. */
export async function runDaemon(paths: Paths, say: (line: string) => void, signal: AbortSignal): Promise<void> {
  try {
    const ports = await realPorts(paths, say, { daemon: true })
    for (let tries = 1; ; tries++) {
      try {
        return await underLock(paths, Promise.resolve(ports), async (core) => {
          await markUp(paths)
          await runAgent(core, signal)
        })
      } catch (error) {
        if (!isBistableError(error, 'AGENT_BUSY') || tries === LOCK_TRIES || signal.aborted) throw error
        await sleep(LOCK_PAUSE_MS)
      }
    }
  } catch (error) {
    // One that is stuck is started again, and the deadline of the try goes on.
    const passing = isBistableError(error, 'AGENT_BUSY') || isBistableError(error, 'AGENT_STUCK')
    if (!passing) await giveUpTry(paths, say, failureFrom(error))
    throw error
  }
}

/** Tells what the initramfs left behind in a try that there is an agent to judge it. It looks for the socket too. */
async function markUp(paths: Paths): Promise<void> {
  await nodeFiles.write(join(paths.run, 'up'), new Uint8Array(0)).catch(() => undefined)
}

/**
 * Holds the control socket while records are open: nobody else may write them.
 * @param mend false: the work itself wants to see what is damaged before anything mends it
 */
async function underLock<T>(
  paths: Paths,
  making: Promise<Ports>,
  work: (core: Core) => Promise<T>,
  mend = true,
): Promise<T> {
  // Met when it is awaited; the lock may be refused before.
  making.catch(() => undefined)
  let ready: (core: Core) => void = () => undefined
  let opened: Core | undefined
  const core = new Promise<Core>((resolve) => {
    ready = resolve
  })
  const lock = await serveControl(
    paths,
    async (...call) => operate(await core, ...call),
    (send) => opened?.activity.subscribe(send),
  )
  let ports: Ports | undefined
  try {
    ports = await making
    opened = await Core.open(ports)
    if (mend) await opened.reconcile()
    await keepReserve(nodeFiles, join(paths.data, RESERVE_FILE))
    ready(opened)
    return await work(opened)
  } finally {
    await ports?.brokers?.close()
    await lock[Symbol.asyncDispose]()
  }
}

/** An agent that cannot even start can never find this try healthy: it is given up at once, with what still works. */
async function giveUpTry(paths: Paths, say: (line: string) => void, failure: Failure): Promise<void> {
  try {
    const line = parseBootLine(Buffer.from((await nodeFiles.read(paths.cmdline, 64 * KiB)) ?? '').toString('utf8'))
    if (line?.boot !== 'try') return
    const boot = makeBoot(await readPlaces(paths.places, nodeFiles).catch(() => undefined))
    const state = await boot.read()
    if (state?.trial !== line.slot) return
    say(
      `bistable: refused slot=${line.slot} release=${formatNumber(line.release)} reason=${failure.code} ${failure.message}`,
    )
    if (state.left > 0) await boot.write(refuse(state, line.slot))
    await realProcesses(paths.root).run((await exists(paths.systemd)) ? ['systemctl', 'reboot'] : ['reboot'], 60_000)
  } catch (error) {
    // The bootloader's counter still ends the try when the watchdog or a person resets the device.
    say(`bistable: the try cannot be given up: ${failureFrom(error).message}`)
  }
}
