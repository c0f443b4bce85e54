import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openBootMode } from '../drivers/boot-mode.ts'
import { openConsolePort } from '../drivers/console.ts'
import { openPower } from '../drivers/power.ts'
import { openStorage, type StorageWiring } from '../drivers/storage.ts'
import { copyImage } from '../harness/disk.ts'
import { openKit } from '../harness/kit.ts'
import { LabError } from '../harness/lab-error.ts'
import type { Machine, Modem } from '../harness/machine.ts'
import { startQemu } from '../harness/qemu.ts'
import { TestServer } from '../harness/server.ts'
import { chooseStore, hold, type SharedLease } from '../lease/hold.ts'
import type { Place } from '../places/index.ts'

/** A place in the hands of a person or of the doctor: its console and its power, one by one. */
export interface Patient {
  /** Opens the console; an emulator has one only while it has power. */
  open(): Promise<void>
  /** What the console says from now on. */
  onData(take: (bytes: Buffer) => void): void
  /** Told when the console goes away by itself, in words for a person. */
  onEnd(tell: (why: string) => void): void
  write(bytes: Buffer): void
  readonly modem: Modem | undefined
  state(): Promise<boolean | undefined>
  on(): Promise<void>
  off(): Promise<void>
  /** Milliseconds that the power must be off to be off. */
  readonly offMs: number
  /** What else the tests need of the place; the power must be off. Each ends with a LabError when it is not in order. */
  readonly checks: readonly Check[]
  close(): Promise<void>
}

export interface Check {
  readonly part: 'storage' | 'network'
  /** Said when it is in order. */
  readonly text: string
  run(): Promise<void>
}

export interface PatientOptions {
  readonly say: (line: string) => void
  /** Told when a board's lease is lost: it must not be touched any more. */
  readonly onLost: (why: Error) => void
}

/** @throws LabError when the place is leased to somebody else, or something of it does not open */
export function openPatient(place: Place, options: PatientOptions): Promise<Patient> {
  return place.kind === 'qemu' ? emulated(place) : onTheBench(place, options)
}

async function emulated(place: Extract<Place, { kind: 'qemu' }>): Promise<Patient> {
  const kit = await openKit(place)
  const folder = await mkdtemp(join(tmpdir(), 'bistable-console-'))
  const disk = join(folder, 'disk.img')
  await copyImage(kit.disk, disk)
  let machine: Machine | undefined
  let take: (bytes: Buffer) => void = () => {}
  let tell: (why: string) => void = () => {}
  const off = async () => {
    const running = machine
    machine = undefined
    running?.port.destroy()
    await running?.cut()
  }
  return {
    offMs: 0,
    checks: [],
    modem: undefined,
    open: async () => {},
    onData: (to) => {
      take = to
    },
    onEnd: (to) => {
      tell = to
    },
    write: (bytes) => {
      machine?.port.write(bytes)
    },
    state: async () => machine !== undefined,
    on: async () => {
      if (machine !== undefined) return
      const started = await startQemu({ disk, profile: place.machine, memoryMiB: place.memoryMiB })
      machine = started
      started.port.on('data', (bytes: Buffer) => take(bytes))
      started.port.on('error', () => {})
      started.port.on('close', () => {
        if (machine === started) tell("the console went away: the emulator or socat, the console's bridge, ended")
      })
    },
    off,
    close: async () => {
      await off()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

async function onTheBench(place: Extract<Place, { kind: 'board' }>, options: PatientOptions): Promise<Patient> {
  const lease = await hold(chooseStore(process.env), place.name, { say: options.say })
  lease.signal.addEventListener('abort', () => options.onLost(lease.signal.reason))
  const power = openPower(place.power)
  const bootMode = place.bootMode === undefined ? undefined : openBootMode(place.bootMode)
  let console: Awaited<ReturnType<typeof openConsolePort>> | undefined
  let take: (bytes: Buffer) => void = () => {}
  let tell: (why: string) => void = () => {}
  let closing = false
  const order = (act: () => Promise<void>) => async () => {
    lease.check()
    await act()
  }
  return {
    offMs: place.offMs ?? 2000,
    checks: [
      ...(place.storage === undefined ? [] : [medium('medium', place.storage, lease)]),
      ...(place.stick === undefined ? [] : [medium('stick', place.stick, lease)]),
      {
        part: 'network',
        text: `the tests' servers can listen on ${place.serverListen}`,
        run: async () => (await TestServer.start(place.serverAddress, place.serverListen)).close(),
      },
    ],
    get modem() {
      return console?.modem
    },
    open: async () => {
      console ??= await openConsolePort(place.console)
      console.port.on('data', (bytes: Buffer) => take(bytes))
      console.port.on('error', () => {})
      console.port.on('close', () => {
        if (!closing) tell('the console went away: is its adapter still plugged in, its server still up?')
      })
    },
    onData: (to) => {
      take = to
    },
    onEnd: (to) => {
      tell = to
    },
    write: (bytes) => {
      if (console === undefined) throw new LabError('the console is not open')
      console.port.write(bytes)
    },
    state: () => power.state(),
    on: order(async () => {
      if (place.mode !== undefined) await bootMode?.set(place.mode)
      await power.on()
    }),
    off: order(() => power.off()),
    close: async () => {
      closing = true
      console?.port.destroy()
      await power.close()
      await bootMode?.close()
      await lease.release()
    },
  }
}

/** Takes it here and gives it back; a stick is pulled then, as tests begin without one. */
function medium(name: 'medium' | 'stick', wiring: StorageWiring, lease: SharedLease): Check {
  return {
    part: 'storage',
    text: `the ${name} comes to this machine and goes back (${wiring.driver})`,
    run: async () => {
      lease.check()
      const storage = openStorage(wiring)
      await storage.toHost()
      await storage.toBoard()
      if (name === 'stick') await storage.pull()
    },
  }
}
