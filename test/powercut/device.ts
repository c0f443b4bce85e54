import type { ByteSource } from '../../base/source.ts'
import { bootStateOn, checkLayout } from '../../bootloader/bootstate.ts'
import { decodeFloor } from '../../bootloader/floor.ts'
import { FILES } from '../../bootloader/layout.ts'
import { decodeReason, encodeReason } from '../../bootloader/reason.ts'
import { grubRepairer } from '../../bootloader/repair.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { Core } from '../../device/agent/core.ts'
import { bootOver, engineOver } from '../../device/agent/engine-over.ts'
import { runAgent } from '../../device/agent/loop.ts'
import type { BootPort, Clock, Engine, Ports } from '../../device/agent/ports.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { type DiskContent, NOTHING_TOLD, RecordedDisk, type Told } from './disk.ts'
import { type BootAnswer, type Bootloader, bootFiles } from './grub.ts'
import { numberOf, type Product, type Release, rankOf } from './releases.ts'

/** A device on a recorded disk: the real agent with the real engine, started by whatever bootloader it is given. */

export const DATA = '/model/data/bistable'
const REASON = FILES[2].offset

/** Replaces one part by a broken one. Each undefined: the real thing. */
export interface Doubles {
  readonly boot?: (real: BootPort, disk: RecordedDisk) => BootPort
  readonly engine?: (real: Engine) => Engine
  readonly disk?: (disk: RecordedDisk) => void
  readonly bootloader?: (real: Bootloader) => Bootloader
}

export interface DeviceParts {
  readonly bootloader: Bootloader
  readonly product: Product
  /** The release that the slot holds, complete with its trees; undefined when it holds none. */
  readonly inSlot: (disk: RecordedDisk, slot: 'a' | 'b') => Promise<Release | undefined>
  readonly doubles?: Doubles
}

/** The bootloader started what cannot run. */
export class Unbootable extends Error {}

export class Device {
  readonly disk: RecordedDisk
  readonly lines: string[] = []
  readonly boots: string[] = []
  readonly #parts: DeviceParts
  readonly #bootloader: Bootloader
  #boots = 0
  #wall = Date.parse('2026-11-21T12:00:00Z')

  constructor(start: DiskContent, parts: DeviceParts, told: Told = NOTHING_TOLD) {
    this.disk = new RecordedDisk(start)
    this.disk.told = () => told
    this.#parts = parts
    this.#bootloader = parts.doubles?.bootloader?.(parts.bootloader) ?? parts.bootloader
    parts.doubles?.disk?.(this.disk)
  }

  /**
   * One power-on: the bootloader decides and writes, the release does what it does, the agent runs until nothing
   * moves any more. @returns how it ended
   */
  async powerOn(during?: (core: Core) => Promise<unknown>): Promise<'runs' | 'reboots' | 'resets'> {
    const started = await this.#start()
    if (started === undefined) return 'resets'
    return (await this.#agent(started.answer, started.release, during)) ? 'reboots' : 'runs'
  }

  /** One power-on in which nothing but this command runs, not even the agent. */
  async command(work: (core: Core) => Promise<unknown>): Promise<void> {
    const started = await this.#start()
    if (started === undefined) throw new Unbootable('the release does not come up')
    await work(await this.#open(started))
  }

  /** Bootloader and initramfs. Undefined: the release ended before its agent came up. */
  async #start(): Promise<{ answer: BootAnswer; release: Release } | undefined> {
    const answer = this.#boot()
    const release = await this.#parts.inSlot(this.disk, answer.slot)
    if (release === undefined) throw new Unbootable(`slot ${answer.slot} was started and holds no whole release`)
    this.boots.push(`${answer.slot}${release.rank}${answer.boot === 'try' ? '?' : ''}`)
    this.#checkFloor(release)
    if (answer.boot === 'try' && release.conduct === 'panics') return undefined
    if (answer.boot === 'try' && release.conduct === 'initramfs-fails') {
      this.#initramfsFails(answer.slot)
      return undefined
    }
    return { answer, release }
  }

  /** Powers on until it stays up. */
  async settle(most = 9): Promise<void> {
    for (let n = 0; n < most; n++) if ((await this.powerOn()) === 'runs') return
    throw new Unbootable(`still resetting after ${most} boots: ${this.boots.join(' ')}`)
  }

  #boot(): BootAnswer {
    const before = bootFiles(this.disk.parts.bootstate)
    const answer = this.#bootloader(before)
    for (const [n, { offset }] of FILES.entries()) {
      const after = answer.after.subarray(n * 1024, n * 1024 + 1024)
      // GRUB writes the whole block and tells nobody to flush.
      if (Buffer.compare(after, before.subarray(n * 1024, n * 1024 + 1024)) !== 0)
        this.disk.write('bootstate', offset, after, 'bootloader')
    }
    return answer
  }

  /** As initramfs/init does: a slot under the floor is not started; a missing floor counts as none. */
  #checkFloor(release: Release): void {
    const floor = floorFile(this.disk.content)
    if (release.rank < floor) throw new Unbootable(`release ${release.rank} was started under floor ${floor}`)
  }

  #initramfsFails(slot: 'a' | 'b'): void {
    const { starts } = decodeReason(this.disk.parts.bootstate.subarray(REASON, REASON + 1024))
    const failure = { slot, stage: 'verity', text: 'a block does not have its digest' }
    const more = { ...starts, [slot]: Math.min(9, starts[slot] + 1) }
    this.disk.write('bootstate', REASON, encodeReason({ starts: more, failure }).subarray(0, 512))
    this.disk.flush('bootstate')
  }

  async #agent(answer: BootAnswer, release: Release, during?: (core: Core) => Promise<unknown>): Promise<boolean> {
    const clock = new PumpedClock(() => this.#wall)
    let rebooting = false
    const ports = this.ports(answer, release, clock, () => {
      rebooting = true
    })
    const core = await Core.open(ports)
    const opened = core.body
    const before = this.disk.told()
    // The body changes when a save has returned: from then on it is promised.
    this.disk.told = () => (core.body === opened ? before : toldBy(core, before))
    await core.reconcile()
    const stop = new AbortController()
    if (!rebooting) {
      const loop = runAgent(core, stop.signal)
      if (during !== undefined) await during(core)
      for (let n = 0; n < 300 && !rebooting && core.body.state.name === 'trying'; n++) await clock.pump()
      stop.abort()
      await clock.end()
      await loop
    }
    const told = this.disk.told()
    this.disk.told = () => told
    this.#wall += 60_000
    return rebooting
  }

  /** Powers on until an agent comes up, and lets it find out what happened: what it does first after a cut. */
  async recover(): Promise<Core> {
    for (let n = 0; n < 6; n++) {
      const started = await this.#start()
      if (started === undefined) continue
      const core = await this.#open(started)
      await core.reconcile()
      return core
    }
    throw new Unbootable(`no agent came up: ${this.boots.join(' ')}`)
  }

  #open({ answer, release }: { answer: BootAnswer; release: Release }): Promise<Core> {
    const clock = new PumpedClock(() => this.#wall)
    return Core.open(this.ports(answer, release, clock, () => undefined))
  }

  ports(answer: BootAnswer, release: Release, clock: Clock, onReboot: () => void): Ports {
    const { disk, lines } = this
    const { doubles, product } = this.#parts
    const files = disk.files()
    const open = async () => {
      const device = disk.bootDevice()
      await checkLayout(device)
      return bootStateOn(device)
    }
    const realBoot = bootOver(open, async () => grubRepairer(disk.bootDevice()))
    const part = (slot: 'a' | 'b', image: 'boot' | 'rootfs') => disk.slotDevice(`${image}-${slot}`)
    const realEngine = engineOver(DATA, files, {
      forWriting: async (slot, image) => part(slot, image),
      forReuse: async (slot, image) => part(slot, image),
      forVerifying: async (slot, image) => part(slot, image),
    })
    const engine: Engine = {
      ...realEngine,
      open: async (source) => {
        const found = product.releases.get(Number(source.split('/').at(-1)))
        // What stands beside a bundle elsewhere is asked for, too.
        if (found === undefined) throw doorErrors.TRANSPORT_MISSING(`nothing at ${source}`)
        return bytesSource(found.bundle, source)
      },
    }
    const { slot, boot, left, why } = answer
    const number = (rank: number) => formatNumber(numberOf(rank))
    const numbers = { floor: number(release.securityFloor), release: number(release.rank) }
    const words = { slot, boot, left, why, ...numbers }
    return {
      files,
      data: DATA,
      clock,
      boot: doubles?.boot?.(realBoot, disk) ?? realBoot,
      engine: doubles?.engine?.(engine) ?? engine,
      processes: {
        glob: async (pattern) => (pattern.includes('/hooks.d/') ? [] : ['/health/app']),
        run: async ([program]) => {
          if (program === 'reboot') onReboot()
          const exit = program !== 'reboot' && release.conduct === 'unhealthy' ? 1 : 0
          return { exit, timedOut: false, said: exit === 0 ? '' : 'not well' }
        },
      },
      config: product.system,
      anchor: product.anchor,
      cmdline: Object.entries(words)
        .map(([name, value]) => `bistable.${name}=${value}`)
        .join(' '),
      bootId: `boot-${this.#boots++}`,
      pid: 1,
      systemd: false,
      watchdog: undefined,
      random: () => 0.5,
      say: (line) => {
        lines.push(line)
      },
    }
  }
}

function toldBy({ body }: Core, before: Told): Told {
  return {
    installFloor: Math.max(before.installFloor, rankOf(body.installFloor)),
    securityFloor: Math.max(before.securityFloor, rankOf(body.securityFloor)),
    rootVersion: Math.max(before.rootVersion, body.trust.version),
  }
}

/** The rank in the floor file; 0 when there is none. @throws BOOT_FLOOR_INVALID */
export function floorFile(files: ReadonlyMap<string, Uint8Array>): number {
  const bytes = files.get(`${DATA}/floor`)
  return bytes === undefined ? 0 : rankOf(decodeFloor(bytes))
}

/** Time that passes only when everything waits for it. */
class PumpedClock implements Clock {
  #now = 0
  #timers: { at: number; wake: () => void }[] = []
  readonly #wall: () => number
  constructor(wall: () => number) {
    this.#wall = wall
  }
  now(): number {
    return this.#now
  }
  wall(): Date {
    return new Date(this.#wall() + this.#now)
  }
  async synchronised(): Promise<boolean> {
    return false
  }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      const stop = () => reject(signal?.reason)
      signal?.addEventListener('abort', stop, { once: true })
      const wake = () => {
        signal?.removeEventListener('abort', stop)
        resolve()
      }
      this.#timers.push({ at: this.#now + ms, wake })
    })
  }
  /** Lets everything run that can, then moves to the next time that something waits for. */
  async pump(): Promise<void> {
    for (let n = 0; n < 3; n++) await new Promise((resolve) => setImmediate(resolve))
    this.#timers.sort((x, y) => x.at - y.at)
    const next = this.#timers.shift()
    if (next === undefined) return
    this.#now = Math.max(this.#now, next.at)
    next.wake()
  }
  async end(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve))
    for (const { wake } of this.#timers.splice(0)) wake()
  }
}

function bytesSource(bytes: Buffer, name: string): ByteSource {
  return {
    name,
    size: bytes.length,
    async *read(offset, length) {
      yield bytes.subarray(offset, offset + length)
    },
    close: async () => undefined,
  }
}
