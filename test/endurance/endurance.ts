import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { BOOTSTATE_BYTES } from '../../bootloader/layout.ts'
import { freshState } from '../../bootloader/machine.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { pathsUnder } from '../../device/config.ts'
import { answer, runDaemon } from '../../device/control/local.ts'
import { TestServer } from '../../hw-tests/harness/server.ts'
import { makeBundle } from '../helpers/bundle.ts'
import { type Disk, readAt, writeAt } from '../helpers/disk.ts'
import { grubDecides, loadableDisk } from '../helpers/grub-emu.ts'
import { signedRoot } from '../keys/helpers.ts'

/**
 * Hundreds of updates back and forth in one process: the daemon itself with its socket and records, real slots (files),
 * a data partition of its own (ext4 on a loop device, for root), bundles over HTTP, and the real GRUB deciding each
 * boot. A device starts its agent anew at every boot; here all of them live in one process, where a leak shows.
 */

export interface EndurancePlan {
  readonly updates: number
  /** One update in so many is of a release whose health check fails. */
  readonly failEvery: number
  /** Updates between two looks. */
  readonly lookEvery: number
}

export interface Look {
  readonly update: number
  /** Bytes. */
  readonly rss: number
  readonly heap: number
  /** Open file descriptors of the process, sockets aside. */
  readonly open: number
  /** Some come and go: a connection that is kept alive for a while. */
  readonly sockets: number
  /** Files and folders on the data partition, and everywhere else that the device writes. */
  readonly files: number
  /** Bytes in use on the data partition. */
  readonly data: number
}

export interface Endured {
  readonly looks: readonly Look[]
  readonly committed: number
  readonly refused: number
  /** What grew between the first look behind the warm-up and the last; empty when nothing did. */
  readonly grew: readonly string[]
}

const MiB = 1 << 20
const IMAGE_BYTES = { boot: 1 * MiB, rootfs: 6 * MiB }
const DATA_BYTES = 48 * MiB
/** Histories on the device have an upper bound; until they are full they may grow. */
const WARM_UPDATES = 100
/**
 * What may differ between two looks: garbage not yet collected, a file or connection that is just being closed, and lists
 * of bounded length that still fill.
 */
const ALLOWED = { rss: 32 * MiB, heap: 8 * MiB, open: 2, sockets: 4, files: 0, data: 32 * 1024 } as const

export async function endure(plan: EndurancePlan, say: (line: string) => void): Promise<Endured> {
  const dir = fs.mkdtempSync(join(tmpdir(), 'bistable-endurance-'))
  const server = await TestServer.start('')
  const device = await EnduringDevice.make(dir, say)
  const looks: Look[] = []
  let [committed, refused] = [0, 0]
  // A run that is stopped leaves nothing mounted.
  const remove = () => device.remove()
  process.once('exit', remove)
  try {
    await device.start()
    for (let n = 1; n <= plan.updates; n++) {
      const healthy = n % plan.failEvery !== 0
      await device.update(server, n, healthy)
      if (healthy) committed++
      else refused++
      if (n % plan.lookEvery === 0 || n === plan.updates) {
        looks.push(device.look(n))
        say(shown(looks.at(-1) as Look))
      }
    }
  } finally {
    await device.stop()
    await server.close()
    process.removeListener('exit', remove)
    remove()
  }
  const grew = growth(looks)
  const figures = `${committed} committed, ${refused} refused by health`
  say(`endurance: ${plan.updates} updates, ${figures}; ${grew.length === 0 ? 'nothing grew' : grew.join('; ')}`)
  return { looks, committed, refused, grew }
}

const mib = (bytes: number): string => `${(bytes / MiB).toFixed(1)} MiB`
const shown = ({ update, rss, heap, open, sockets, files, data }: Look): string =>
  `update ${update}: ${mib(rss)} resident, ${mib(heap)} heap, ${open} open files, ${sockets} sockets, ${files} files, ${data / 1024} KiB on data`

/** Compares the last look with the first one behind the warm-up. Pure. */
export function growth(looks: readonly Look[]): string[] {
  const last = looks.at(-1)
  const first = looks.find(({ update }) => update >= Math.min(WARM_UPDATES, (last?.update ?? 0) / 2))
  if (last === undefined || first === undefined) return ['nothing was looked at']
  return (Object.keys(ALLOWED) as (keyof typeof ALLOWED)[])
    .filter((name) => last[name] - first[name] > ALLOWED[name])
    .map((name) => `${name} grew from ${first[name]} at update ${first.update} to ${last[name]} at ${last.update}`)
}

class EnduringDevice {
  readonly #dir: string
  readonly #root: string
  readonly #mounted: boolean
  readonly #disk: Disk
  readonly #holds: Record<Slot, number> = { a: 0, b: 0 }
  #running: Slot = 'a'
  #daemon: { readonly stop: AbortController; readonly ended: Promise<void>; readonly lines: string[] } | undefined
  #heard: () => void = () => undefined

  private constructor(dir: string, mounted: boolean) {
    this.#dir = dir
    this.#root = join(dir, 'root')
    this.#mounted = mounted
    fs.mkdirSync(join(dir, 'grub-disk'))
    this.#disk = loadableDisk(join(dir, 'grub-disk'))
  }

  static async make(dir: string, say: (line: string) => void): Promise<EnduringDevice> {
    const root = join(dir, 'root')
    const at = (path: string) => join(root, path)
    const folders = ['usr/lib/bistable/health', 'usr/bin', 'proc', 'etc/bistable', 'disk', 'data', 'run']
    for (const folder of folders) fs.mkdirSync(at(folder), { recursive: true })
    const system = {
      ...{ product: 'demo', hardware: ['qemu-x86_64'], agent: { apply: 'manual' } },
      health: { deadlineSeconds: 1, required: ['/usr/lib/bistable/health/*'], wanted: [] },
    }
    fs.writeFileSync(at('usr/lib/bistable/system.json'), JSON.stringify(system))
    fs.writeFileSync(at('usr/lib/bistable/root.json'), await signedRoot({}, [1, 2]))
    const check = `#!/bin/sh\n[ ! -e '${at('unhealthy')}' ]\n`
    for (const [path, text] of [
      ['usr/lib/bistable/health/app', check],
      ['usr/bin/reboot', '#!/bin/sh\n'],
    ] as const) {
      fs.writeFileSync(at(path), text)
      fs.chmodSync(at(path), 0o755)
    }
    const slots = (slot: string) => ({ boot: at(`disk/boot-${slot}`), rootfs: at(`disk/rootfs-${slot}`) })
    const places = { bootstate: at('disk/bootstate'), slots: { a: slots('a'), b: slots('b') } }
    fs.writeFileSync(at('etc/bistable/places.json'), JSON.stringify(places))
    fs.writeFileSync(at('disk/bootstate'), await bootstateImage(freshState('a')))
    for (const slot of ['a', 'b'])
      for (const [image, bytes] of Object.entries(IMAGE_BYTES)) {
        fs.writeFileSync(at(`disk/${image}-${slot}`), '')
        fs.truncateSync(at(`disk/${image}-${slot}`), bytes + MiB)
      }
    return new EnduringDevice(dir, mountData(dir, at('data'), say))
  }

  /** Power on: GRUB decides, then the daemon comes up and says how. */
  async start(): Promise<void> {
    const { slot, boot, why, left } = this.#boot()
    this.#running = slot
    const words = { slot, boot, why, left, release: `0.${this.#holds[slot]}`, floor: '0.0' }
    const line = Object.entries(words).map(([name, value]) => `bistable.${name}=${value}`)
    fs.writeFileSync(join(this.#root, 'proc/cmdline'), `${line.join(' ')}\n`)
    const stop = new AbortController()
    const lines: string[] = []
    const say = (said: string) => {
      lines.push(said)
      this.#heard()
    }
    const ended = runDaemon(pathsUnder(this.#root), say, stop.signal)
    ended.catch((error) => say(`bistable: the daemon ended: ${error}`))
    this.#daemon = { stop, ended, lines }
  }

  async stop(): Promise<void> {
    const daemon = this.#daemon
    this.#daemon = undefined
    daemon?.stop.abort()
    await daemon?.ended
  }

  /** Installs release `n` into the other slot, reboots into it, and sees it committed or given up. */
  async update(server: TestServer, n: number, healthy: boolean): Promise<void> {
    const before = this.#running
    const target = otherSlot(before)
    await this.#hears(n === 1 ? /running slot=/ : /running slot=|committed slot=|fell back/)
    const bundle = await this.#release(n)
    server.offer('/next.bundle', { from: bundle })
    // The bench's own memory is none of the device's.
    server.log.length = 0
    const source = `http://127.0.0.1:${server.port}/next.bundle`
    await answer(pathsUnder(this.#root), 'install', { source }, () => undefined, new AbortController().signal)
    this.#holds[target] = n
    await this.#reboot()
    if (this.#running !== target)
      throw new Error(`release ${n} was armed in slot ${target}, slot ${this.#running} boots`)
    if (healthy) {
      await this.#hears(/committed slot=/)
    } else {
      fs.writeFileSync(join(this.#root, 'unhealthy'), '')
      await this.#hears(/: rebooting/)
      fs.rmSync(join(this.#root, 'unhealthy'))
      await this.#reboot()
      await this.#hears(/fell back/)
      if (this.#running !== before) throw new Error(`release ${n} was refused, and slot ${this.#running} boots`)
    }
  }

  async #reboot(): Promise<void> {
    await this.stop()
    await this.start()
  }

  #hears(wanted: RegExp): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#heard = () => {
        const lines = this.#daemon?.lines ?? []
        if (lines.some((line) => wanted.test(line))) resolve()
        else if (lines.some((line) => /the daemon ended/.test(line))) reject(new Error(lines.join('\n')))
      }
      this.#heard()
    })
  }

  #boot() {
    const path = join(this.#root, 'disk/bootstate')
    const at = this.#disk.offsets.bootstate
    writeAt(this.#disk.path, at, fs.readFileSync(path))
    const fields = grubDecides(join(this.#dir, 'grub-disk'), [this.#disk.path])[0]?.fields
    writeAt(path, 0, readAt(this.#disk.path, at, BOOTSTATE_BYTES))
    const { slot, boot = '', why = '', left = '' } = fields ?? {}
    if (slot !== 'a' && slot !== 'b') throw new Error('GRUB chose no slot')
    return { slot, boot, why, left } as const
  }

  async #release(n: number): Promise<string> {
    const folder = join(this.#dir, 'publisher')
    fs.rmSync(folder, { recursive: true, force: true })
    fs.mkdirSync(folder)
    const image = (name: string, bytes: number) => {
      const made = createHash('shake256', { outputLength: bytes }).update(name).digest()
      // A part of each image is new in each release, as in life; the rest comes from the running slot.
      createHash('shake256', { outputLength: bytes >> 3 })
        .update(`${name} ${n}`)
        .digest()
        .copy(made, bytes >> 2)
      return made
    }
    const [boot, rootfs] = [image('boot', IMAGE_BYTES.boot), image('rootfs', IMAGE_BYTES.rootfs)]
    const number = { epoch: 0, counter: n }
    return (await makeBundle(folder, 'next', { boot, rootfs, number, securityFloor: { epoch: 0, counter: 0 } })).path
  }

  look(update: number): Look {
    globalThis.gc?.()
    const { rss, heapUsed } = process.memoryUsage()
    const list = (folder: string) => fs.readdirSync(join(this.#root, folder), { recursive: true }).length
    const { blocks, bfree, bsize } = fs.statfsSync(join(this.#root, 'data'))
    const data = this.#mounted ? (blocks - bfree) * bsize : sizeOf(join(this.#root, 'data'))
    const files = ['data', 'run', 'etc', 'disk'].reduce((sum, folder) => sum + list(folder), 0)
    return { update, rss, heap: heapUsed, ...descriptors(), files, data }
  }

  remove(): void {
    if (this.#mounted) execFileSync('umount', [join(this.#root, 'data')], { env: ENV })
    fs.rmSync(this.#dir, { recursive: true, force: true })
  }
}

const ENV = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }

/** A data partition of its own, where this user may mount one; else a folder, and its size is the sum of its files. */
function mountData(dir: string, at: string, say: (line: string) => void): boolean {
  if (process.getuid?.() === 0) {
    try {
      const image = join(dir, 'data.img')
      fs.writeFileSync(image, '')
      fs.truncateSync(image, DATA_BYTES)
      execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', image], { env: ENV })
      execFileSync('mount', ['-o', 'loop', image, at], { env: ENV, stdio: 'pipe' })
      return true
    } catch (error) {
      say(`no loop device here (${error}): the data partition is a folder`)
    }
  } else say('not root: the data partition is a folder')
  return false
}

function descriptors(): Pick<Look, 'open' | 'sockets'> {
  const targets = fs.readdirSync('/proc/self/fd').map((name) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${name}`)
    } catch {
      // The one that the list itself was read through.
      return ''
    }
  })
  const sockets = targets.filter((target) => target.startsWith('socket:')).length
  return { open: targets.length - sockets, sockets }
}

function sizeOf(folder: string): number {
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((sum, { parentPath, name }) => sum + fs.statSync(join(parentPath, name)).size, 0)
}
