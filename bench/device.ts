import { type ChildProcess, spawn } from 'node:child_process'
import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { bootstateImage } from '../bootloader/bootstate.ts'
import { freshState } from '../bootloader/machine.ts'
import { askAgent } from '../test/helpers/device-process.ts'
import { type Measured, measure, processCpuSeconds, toolEnv, treeHighWater } from './measure.ts'
import { PRODUCT, type Workshop } from './workshop.ts'

type Slots = Readonly<Record<'a' | 'b', Readonly<Record<'boot' | 'rootfs', string>>>>

/** A device has no certificates of a build machine for Node.js to read at each start. */
const PLAIN = { NODE_EXTRA_CA_CERTS: '', NODE_OPTIONS: '' }
/** What a started agent does at once is over: it gives memory back and waits. */
const SETTLED_MS = 1500
const PATIENCE_MS = 30_000
const SAMPLE_MS = 20

/** `bistable install FILE` where no agent runs: one process does it all. A new device each time. */
export async function installAlone(workshop: Workshop, slots: Slots, bundle: string): Promise<Measured> {
  const root = await newDevice(workshop, slots)
  return await measure(workshop.device.launcher, ['install', bundle, '--json'], {
    env: { BISTABLE_ROOT: root, ...PLAIN },
  })
}

/**
 * `bistable install FILE` where the agent runs, as on a device: it is asked over its socket. A new device each time, and its
 * agent has come to rest. Processor time and memory are those of both processes; the agent's memory since its start.
 */
export async function installByAgent(workshop: Workshop, slots: Slots, bundle: string): Promise<Measured> {
  const root = await newDevice(workshop, slots)
  const env = { BISTABLE_ROOT: root, ...PLAIN }
  const agent = spawn(workshop.device.launcher, ['agent'], { stdio: 'ignore', env: { ...toolEnv, ...env } })
  const kill = (): void => void agent.kill('SIGKILL')
  process.on('exit', kill)
  try {
    await answers(root, agent)
    await sleep(SETTLED_MS)
    const pid = agent.pid ?? 0
    const before = processCpuSeconds(pid)
    let peak = treeHighWater(pid)
    const timer = setInterval(() => {
      peak = Math.max(peak, treeHighWater(pid))
    }, SAMPLE_MS)
    const asked = measure(workshop.device.launcher, ['install', bundle, '--json'], { env })
    const client = await asked.finally(() => clearInterval(timer))
    return {
      ...client,
      cpuSeconds: client.cpuSeconds + processCpuSeconds(pid) - before,
      peakMiB: client.peakMiB + Math.max(peak, treeHighWater(pid)) / 1024,
    }
  } finally {
    process.off('exit', kill)
    await end(agent)
  }
}

async function answers(root: string, agent: ChildProcess): Promise<void> {
  for (const start = performance.now(); performance.now() - start < PATIENCE_MS; await sleep(50)) {
    if (agent.exitCode !== null) break
    const said = await askAgent(root, 'status').catch(() => '')
    if (said.includes('"result"')) return
  }
  throw new Error(`the agent does not come up: ${agent.exitCode ?? 'no answer'}`)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('close', resolve))
  child.kill('SIGTERM')
  await ended
}

/** A device that runs slot a, for `BISTABLE_ROOT`. */
export async function newDevice(workshop: Workshop, slots: Slots): Promise<string> {
  const root = join(workshop.folder, 'device')
  await rm(root, { recursive: true, force: true })
  for (const path of ['usr/lib/bistable', 'etc/bistable', 'proc', 'data/bistable', 'run/bistable'])
    await mkdir(join(root, path), { recursive: true })
  const bootstate = join(root, 'bootstate')
  await writeFile(bootstate, await bootstateImage(freshState('a')))
  await writeFile(join(root, 'etc/bistable/places.json'), JSON.stringify({ bootstate, slots }))
  const system = { product: PRODUCT, hardware: ['qemu-x86_64'] }
  await writeFile(join(root, 'usr/lib/bistable/system.json'), JSON.stringify(system))
  await copyFile(workshop.rootStatement, join(root, 'usr/lib/bistable/root.json'))
  const line =
    'bistable.slot=a bistable.release=1.0 bistable.floor=0.0 bistable.boot=committed bistable.left=0 bistable.why=ok'
  await writeFile(join(root, 'proc/cmdline'), `${line}\n`)
  return root
}
