import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { nodeFiles } from '../../base/durable.ts'
import type { ByteSource } from '../../base/source.ts'
import { bootstateImage, openBootState } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { checkSystem } from '../../bundle/system.ts'
import { Core } from '../../device/agent/core.ts'
import { makeBoot, makeEngine } from '../../device/agent/engine.ts'
import { poll } from '../../device/agent/loop.ts'
import type { Ports } from '../../device/agent/ports.ts'
import { installFrom } from '../../device/agent/work.ts'
import { Brokers } from '../../device/doors/brokers.ts'
import { systemClock } from '../../device/doors/clock.ts'
import type { Sticks } from '../../device/usb/sticks.ts'
import { signedRoot } from '../keys/helpers.ts'

/**
 * A device to attack: the real agent core over real doors, slots (files), boot state and records. Only the kernel
 * command line and the clock are made up. It runs release 0.5 in slot a, its security floor is 0.3.
 */

const MiB = 1 << 20
const IMAGES = ['boot-a', 'rootfs-a', 'boot-b', 'rootfs-b']
export const NEVER = new AbortController().signal

export interface DevicePlan {
  readonly anchor?: Uint8Array
  /** As if the network had set it. */
  readonly synchronised?: boolean
  readonly wall?: string
  readonly hardware?: string
  readonly slotBytes?: number
  readonly channel?: string
  readonly mirrors?: readonly string[]
  readonly sticks?: Sticks
  readonly usb?: object
  readonly apply?: 'manual' | 'install'
  /** True for a device whose agent runs: with a real clock, and a session with its broker. */
  readonly daemon?: boolean
  /** What stands between a door and the agent. */
  readonly tamper?: (source: ByteSource) => ByteSource
}

export class Device {
  readonly root: string
  readonly ports: Ports
  core: Core
  readonly said: string[]
  /** Programs that the agent started. */
  readonly ran: string[][]
  /** What the clock shows; may be set. */
  readonly clock: { wall: Date; synchronised: boolean }
  readonly #slotBytes: number

  private constructor(
    root: string,
    ports: Ports,
    core: Core,
    made: Pick<Device, 'said' | 'ran' | 'clock'>,
    slotBytes: number,
  ) {
    this.root = root
    this.ports = ports
    this.core = core
    this.said = made.said
    this.ran = made.ran
    this.clock = made.clock
    this.#slotBytes = slotBytes
  }

  static async make(root: string, plan: DevicePlan = {}): Promise<Device> {
    const at = (path: string) => join(root, path)
    const slotBytes = plan.slotBytes ?? MiB
    for (const folder of ['disk', 'data']) mkdirSync(at(folder), { recursive: true })
    const slots = (slot: string) => ({ boot: at(`disk/boot-${slot}`), rootfs: at(`disk/rootfs-${slot}`) })
    const places = { bootstate: at('disk/bootstate'), slots: { a: slots('a'), b: slots('b') } }
    writeFileSync(places.bootstate, await bootstateImage(freshState('a')))
    for (const file of IMAGES) {
      writeFileSync(at(`disk/${file}`), '')
      truncateSync(at(`disk/${file}`), slotBytes)
    }
    const checked = checkSystem({
      product: 'demo',
      hardware: [plan.hardware ?? 'qemu-x86_64'],
      health: { deadlineSeconds: 20, required: [], wanted: [] },
      agent: {
        channel: plan.channel ?? 'http://127.0.0.1:9/channels/stable.json',
        apply: plan.apply ?? 'manual',
        mirrors: plan.mirrors ?? [],
        usb: plan.usb ?? {},
      },
    })
    if ('problems' in checked) throw new Error(checked.problems.join())
    const clock = { wall: new Date(plan.wall ?? '2026-11-21T12:00:00Z'), synchronised: plan.synchronised ?? true }
    const said: string[] = []
    const ran: string[][] = []
    const brokers = new Brokers({
      device: 'device-1',
      backoff: { firstMs: 100, maxMs: 300 },
      lingerMs: 100,
      presence: plan.daemon === true,
    })
    const engine = makeEngine(at('data/bistable'), nodeFiles, places, undefined, brokers)
    const tamper = plan.tamper ?? ((source: ByteSource) => source)
    const ports: Ports = {
      files: nodeFiles,
      data: at('data/bistable'),
      clock: {
        now: () => performance.now(),
        wall: () => clock.wall,
        // Time stands still unless the agent itself runs; only a signal ends a wait.
        sleep: (ms, signal) =>
          plan.daemon === true
            ? systemClock.sleep(ms, signal)
            : new Promise((_, stop) => signal?.addEventListener('abort', () => stop(signal.reason), { once: true })),
        synchronised: async () => clock.synchronised,
      },
      boot: makeBoot(places),
      ...(plan.daemon === true ? { brokers } : {}),
      engine: { ...engine, open: async (...from) => tamper(await engine.open(...from)) },
      processes: {
        run: async (command) => {
          ran.push([...command])
          return { exit: 0, timedOut: false, said: '' }
        },
        glob: async () => [],
      },
      config: checked.system,
      anchor: plan.anchor ?? (await signedRoot({}, [1, 2])),
      cmdline: 'quiet bistable.floor=0.3 bistable.slot=a bistable.release=0.5 bistable.boot=committed bistable.left=0',
      bootId: 'boot-1',
      deviceId: 'device-1',
      sticks: plan.sticks,
      pid: process.pid,
      systemd: false,
      watchdog: undefined,
      random: () => 0.5,
      say: (line) => void said.push(line),
    }
    const core = await Core.open(ports)
    await core.reconcile()
    return new Device(root, ports, core, { said, ran, clock }, slotBytes)
  }

  /** The agent is killed and starts again: all it knows comes from the disk. */
  async restart(): Promise<void> {
    this.core = await Core.open(this.ports)
    await this.core.reconcile()
  }

  install(from: string, force = false): Promise<unknown> {
    return installFrom(this.core, from, { force, onProgress: () => undefined }, NEVER)
  }

  /** One round of the agent's loop: ask the channel, and do what the policy says. */
  poll(): Promise<void> {
    return poll(this.core, NEVER)
  }

  async bootState() {
    const opened = await openBootState(join(this.root, 'disk/bootstate'))
    try {
      return (await opened.read()).state
    } finally {
      await opened.close()
    }
  }

  /** A digest of everything that decides what boots: boot state, all slots, what is kept about them, the floor. */
  async fingerprint(): Promise<string> {
    const all = createHash('sha256')
    for (const file of ['bootstate', ...IMAGES]) all.update(readFileSync(join(this.root, 'disk', file)))
    for (const kept of ['floor', 'slots']) {
      const place = join(this.root, 'data/bistable', kept)
      for (const path of filesBelow(place)) all.update(`${path}\n`).update(readFileSync(path))
    }
    const { installFloor, securityFloor } = this.core.body
    all.update(JSON.stringify({ installFloor, securityFloor }))
    return all.digest('hex')
  }

  /** Puts a device that has armed something back to its first state. */
  async reset(): Promise<void> {
    writeFileSync(join(this.root, 'disk/bootstate'), await bootstateImage(freshState('a')))
    for (const file of IMAGES) {
      writeFileSync(join(this.root, 'disk', file), '')
      truncateSync(join(this.root, 'disk', file), this.#slotBytes)
    }
  }
}

function filesBelow(place: string): string[] {
  try {
    return readdirSync(place, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
  } catch {
    // A file, or nothing there.
    try {
      readFileSync(place)
      return [place]
    } catch {
      return []
    }
  }
}
