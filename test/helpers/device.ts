import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { runCli } from '../../base/cli.ts'
import { bootstateImage, openBootState } from '../../bootloader/bootstate.ts'
import { encodeCopy } from '../../bootloader/grub-env.ts'
import { FILES } from '../../bootloader/layout.ts'
import { freshState, onBoot } from '../../bootloader/machine.ts'
import { deviceVerbs } from '../../device/cli.ts'
import { signedRoot } from '../keys/helpers.ts'
import { writeAt } from './disk.ts'

/**
 * The device's command on a made-up device: real slots (files), real boot state, real sockets and records. Only the
 * kernel command line is written by hand.
 */

const REPO = resolve(import.meta.dirname, '../..')

export interface Ran {
  readonly exit: number
  readonly out: string
  readonly err: string
  /** Standard output as JSON; {} when it is text for people. */
  readonly json: Record<string, unknown>
}

/** A folder with the program bundled into one file, as it ships; devices live beside it. */
export async function deviceLab(): Promise<{ readonly base: string; readonly program: string; remove(): void }> {
  const base = mkdtempSync(join(tmpdir(), 'bsd-'))
  const program = join(base, 'bistable.mjs')
  symlinkSync(join(REPO, 'node_modules'), join(base, 'node_modules'))
  await build({
    absWorkingDir: REPO,
    entryPoints: ['device/main.ts'],
    outfile: program,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20.19',
    external: ['zstd-napi'],
    logLevel: 'error',
  })
  return { base, program, remove: () => rmSync(base, { recursive: true, force: true }) }
}

export interface DevicePlan {
  readonly slotBytes?: number
  /** Changes places.json: "the slot device is missing". */
  readonly missing?: 'boot-a' | 'rootfs-a' | 'boot-b' | 'rootfs-b' | 'bootstate'
}

const SLOT_FILES = ['boot-a', 'rootfs-a', 'boot-b', 'rootfs-b'] as const

/** A device of product "demo" and hardware "qemu-x86_64" that runs release 0.2 from slot a. */
export class TestDevice {
  readonly root: string
  readonly #program: string

  private constructor(root: string, program: string) {
    this.root = root
    this.#program = program
  }

  static async make(base: string, program: string, plan: DevicePlan = {}): Promise<TestDevice> {
    const device = new TestDevice(mkdtempSync(join(base, 'd-')), program)
    const { root } = device
    for (const folder of ['usr/lib/bistable', 'usr/bin', 'proc', 'etc/bistable', 'disk', 'data', 'run'])
      mkdirSync(join(root, folder), { recursive: true })
    const system = { product: 'demo', hardware: ['qemu-x86_64'] }
    writeFileSync(join(root, 'usr/lib/bistable/system.json'), JSON.stringify(system))
    writeFileSync(join(root, 'usr/lib/bistable/root.json'), await signedRoot({}, [1, 2]))
    const disk = (name: string) => join(root, 'disk', name)
    const slots = (slot: string) => ({ boot: disk(`boot-${slot}`), rootfs: disk(`rootfs-${slot}`) })
    const places = { bootstate: disk('bootstate'), slots: { a: slots('a'), b: slots('b') } }
    writeFileSync(join(root, 'etc/bistable/places.json'), JSON.stringify(places))
    writeFileSync(disk('bootstate'), await bootstateImage(freshState('a')))
    for (const [i, name] of SLOT_FILES.entries()) {
      // Something that would be missed.
      writeFileSync(disk(name), Buffer.alloc(64 * 1024, i + 1))
      truncateSync(disk(name), plan.slotBytes ?? 1 << 20)
    }
    if (plan.missing !== undefined) rmSync(disk(plan.missing))
    device.boots(
      'quiet bistable.floor=0.1 bistable.slot=a bistable.release=0.2 bistable.boot=committed bistable.left=0 bistable.why=ok',
    )
    return device
  }

  /** SHA-256 of everything that decides what boots: the four slot files and the boot state. */
  digests(): Record<string, string> {
    const found: Record<string, string> = {}
    for (const name of [...SLOT_FILES, 'bootstate']) {
      try {
        found[name] = createHash('sha256')
          .update(readFileSync(join(this.root, 'disk', name)))
          .digest('hex')
      } catch {
        found[name] = 'not there'
      }
    }
    return found
  }

  async bootState() {
    const opened = await openBootState(join(this.root, 'disk/bootstate'))
    try {
      return (await opened.read()).state
    } finally {
      await opened.close()
    }
  }

  /** What the bootloader does before it starts a slot on trial: counts down in the copy that does not count. */
  async countDown(): Promise<void> {
    const path = join(this.root, 'disk/bootstate')
    const opened = await openBootState(path)
    const { state, source } = await opened.read()
    await opened.close()
    const newState = onBoot(state).newState
    if (newState === undefined) throw new Error('nothing is on trial')
    writeAt(path, FILES[source === 0 ? 1 : 0].offset, encodeCopy(newState))
  }

  /** What the next command finds on the kernel command line. */
  boots(words: string): void {
    writeFileSync(join(this.root, 'proc/cmdline'), `${words}\n`)
  }

  get #env() {
    return { ...process.env, BISTABLE_ROOT: this.root }
  }

  /** The command in this process; with `wrap`, a program and its arguments, as a process of its own under it. */
  async run(args: readonly string[], wrap?: readonly string[]): Promise<Ran> {
    const ran = wrap === undefined ? await this.#here(args) : await this.#apart([...wrap, ...this.#command(args)])
    try {
      return { ...ran, json: JSON.parse(ran.out) }
    } catch {
      return { ...ran, json: {} }
    }
  }

  async #here(args: readonly string[]): Promise<Omit<Ran, 'json'>> {
    const out: string[] = []
    const err: string[] = []
    const terminal = { out: (l: string) => out.push(l), err: (l: string) => err.push(l), interactive: false }
    const before = process.env['BISTABLE_ROOT']
    process.env['BISTABLE_ROOT'] = this.root
    try {
      const exit = await runCli(deviceVerbs, args, terminal, new AbortController().signal)
      return { exit, out: out.join('\n'), err: err.join('\n') }
    } finally {
      if (before === undefined) delete process.env['BISTABLE_ROOT']
      else process.env['BISTABLE_ROOT'] = before
    }
  }

  #apart([program = '', ...rest]: readonly string[]): Promise<Omit<Ran, 'json'>> {
    return new Promise((done) => {
      execFile(program, rest, { env: this.#env }, (error, out, err) => {
        done({ exit: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, out, err })
      })
    })
  }

  #command(args: readonly string[]): readonly string[] {
    return [process.execPath, this.#program, ...args]
  }

  /** Starts the command and gives it to the caller to kill. */
  start(args: readonly string[]) {
    return spawn(process.execPath, [this.#program, ...args], { env: this.#env, stdio: 'ignore' })
  }
}
