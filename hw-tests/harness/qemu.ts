import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialPort } from 'serialport'
import { openSerial } from '../drivers/serial-port.ts'
import { BROKER_PORT } from './broker.ts'
import { LabError } from './lab-error.ts'
import type { Machine } from './machine.ts'
import { MACHINES, type MachineName, type MachineProfile } from './machines.ts'
import { emulatorAccount } from './qemu-account.ts'
import { Qmp } from './qmp.ts'

/** A QEMU machine as a place: its firmware, one virtio disk, a serial console on a pty, power by process. */

export interface QemuOptions {
  /** The raw disk image; the machine writes to it. */
  readonly disk: string
  /** Which machine; an x86 PC with UEFI unless told. */
  readonly profile?: MachineName
  readonly memoryMiB?: number
  /** Loopback port on this machine that the guest reaches as http://10.0.2.100/. */
  readonly httpPort?: number
  /** Unix socket of a broker on this machine that the guest reaches as mqtt://10.0.2.100:1883. */
  readonly brokerSocket?: string
  /** What the disk refuses from the start. */
  readonly faults?: readonly DiskFault[]
  /** More emulator arguments, for tests of special hardware. */
  readonly extra?: readonly string[]
  readonly accel?: 'tcg' | 'kvm'
  /** A file that gets a record of every write and flush of the disk, in the format of Linux's dm-log-writes. */
  readonly writeLog?: string
  /** A machine state saved by `save` with the same options, beside a copy of the disk as it was then. */
  readonly restore?: string
}

/** A disk that fails (QEMU's blkdebug): worn cells, a write protection, a cache that cannot be flushed. */
export interface DiskFault {
  readonly on: 'read' | 'write' | 'flush'
  /** The one sector of 512 bytes that fails, or else all of them. */
  readonly sector?: number
  /** 5: input/output error, which is what drivers make of a write protection, too. */
  readonly errno: number
}

/** The disk's file as options of `-drive`. Pure. */
export function diskFile(disk: string, faults: readonly DiskFault[]): string {
  // In these options a comma is written twice.
  const path = disk.replaceAll(',', ',,')
  if (faults.length === 0) return `file=${path}`
  const rules = faults.flatMap(({ on, sector, errno }, i) => [
    `file.inject-error.${i}.event=none`,
    `file.inject-error.${i}.iotype=${on}`,
    `file.inject-error.${i}.errno=${errno}`,
    `file.inject-error.${i}.immediately=off`,
    ...(sector === undefined ? [] : [`file.inject-error.${i}.sector=${sector}`]),
  ])
  return ['file.driver=blkdebug', ...rules, 'file.image.driver=file', `file.image.filename=${path}`].join(',')
}

export interface QemuMachine extends Machine {
  readonly qmp: Qmp
  /** The disk then belongs to the state in the file. */
  save(file: string): Promise<void>
  account(): Promise<readonly string[]>
  readonly exited: Promise<number | null>
}

/** A moment on an idle machine. */
const START_MS = 60_000
/** What the emulator wrote before it ended is read by then. */
const LAST_WORDS_MS = 1000

/**
 * 128 MiB of translated code. With QEMU's default (1 GiB on a machine of 24) what a system leaves behind at a reset is taken
 * apart piece by piece as the next one clears its memory: 11 s of processor time between a reset of Debian and GRUB. With 64
 * a boot, a few commands, an install and a try overran it 19 times, and everything was translated anew; with this 5 times.
 */
const TCG = 'tcg,tb-size=128'

export async function startQemu(options: QemuOptions): Promise<QemuMachine> {
  const profile: MachineProfile = MACHINES[options.profile ?? 'x86-uefi']
  const scratch = await mkdtemp(join(tmpdir(), 'bistable-qemu-'))
  const control = join(scratch, 'qmp')
  const wire = join(scratch, 'console')
  const firmware = await profile.firmware(scratch)
  const forwards = [
    ...(options.httpPort === undefined ? [] : [[80, `TCP:127.0.0.1:${options.httpPort}`]]),
    ...(options.brokerSocket === undefined ? [] : [[BROKER_PORT, `UNIX-CONNECT:${options.brokerSocket}`]]),
  ].map(([port, to]) => `guestfwd=tcp:10.0.2.100:${port}-cmd:socat STDIO ${to}`)
  const network =
    forwards.length === 0
      ? ['-nic', 'none']
      : [
          ...['-netdev', ['user,id=net,restrict=on', ...forwards].join(',')],
          ...['-device', 'virtio-net-pci,netdev=net,romfile='],
        ]
  // UEFI would else start its network drivers, at each boot, to see what could be booted from there. Without a network it
  // decides from its own variables, as tests of those want it.
  const first = forwards.length === 0 ? '' : ',bootindex=0'
  const args = [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-S'],
    ...['-machine', profile.machine, '-accel', options.accel === 'kvm' ? 'kvm' : TCG],
    ...['-cpu', options.accel === 'kvm' ? 'host' : profile.cpu],
    ...['-smp', '1', '-m', String(options.memoryMiB ?? 768)],
    ...firmware,
    ...['-drive', `if=none,id=disk,cache=writeback,discard=unmap,${medium(options)}`],
    ...['-device', `virtio-blk-pci,drive=disk,serial=bistable-disk${first}`],
    ...['-device', 'virtio-rng-pci'],
    ...profile.socket.args,
    ...network,
    ...['-chardev', `socket,id=console,path=${wire},server=on,wait=off`, '-serial', 'chardev:console'],
    ...['-qmp', `unix:${control},server=on,wait=off`],
    ...(options.restore === undefined ? [] : ['-incoming', 'defer']),
    ...(options.extra ?? []),
  ]
  // A test run that is killed takes its machines with it.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', profile.program, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  child.stdout.on('data', (b: Buffer) => {
    said = (said + b.toString()).slice(-4096)
  })
  child.stderr.on('data', (b: Buffer) => {
    said = (said + b.toString()).slice(-4096)
  })
  const exited = new Promise<number | null>((resolve) => child.on('close', resolve)).finally(() =>
    rm(scratch, { recursive: true, force: true }),
  )
  const failed = new Promise<never>((_, reject) => {
    child.on('error', (error) => reject(new LabError(`the emulator does not start: ${error.message}`)))
    child.on('exit', (code) => reject(new LabError(`the emulator ended with ${code}: ${said}`)))
  })
  failed.catch(() => {})
  try {
    const qmp = await Promise.race([Qmp.connect(control, START_MS), failed])
    const port = await openConsole(qmp, wire, join(scratch, 'tty'), failed)
    if (options.restore !== undefined) await Promise.race([restore(qmp, options.restore), failed])
    // With the emulator its console ends, also where the bridge to it does not.
    void exited.then(() => setTimeout(() => port.destroy(), LAST_WORDS_MS))
    // The console is open before the first instruction runs: nothing is lost.
    await qmp.send('cont')
    let sticks = 0
    let stick = ''
    return {
      port,
      qmp,
      exited,
      liveDisk: options.disk,
      cut: () => cut(child, qmp, exited),
      account: () => emulatorAccount(qmp, child.pid),
      reset: async () => {
        await qmp.send('system_reset')
      },
      save: async (file) => {
        await qmp.send('stop')
        await qmp.send('migrate', { uri: `exec:cat >'${quotable(file)}'` })
        await until(qmp, 'query-migrate', ['completed'])
        await cut(child, qmp, exited)
      },
      plug: async (image) => {
        // A name of its own each time: what was pulled may still be held by the emulator.
        stick = `stick${++sticks}`
        const file = { driver: 'file', filename: image }
        await qmp.send('blockdev-add', { driver: 'raw', 'node-name': stick, 'read-only': true, file })
        await qmp.send('device_add', { driver: 'virtio-blk-pci', id: stick, drive: stick, bus: profile.socket.bus })
      },
      unplug: async () => {
        await qmp.send('device_del', { id: stick })
      },
    }
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  }
}

function medium({ disk, writeLog, faults }: QemuOptions): string {
  if (writeLog === undefined) return `format=raw,${diskFile(disk, faults ?? [])}`
  const image = `file.driver=raw,file.file.driver=file,file.file.filename=${disk}`
  return `driver=blklogwrites,${image},log.driver=file,log.filename=${writeLog},log-sector-size=512`
}

async function restore(qmp: Qmp, file: string): Promise<void> {
  // The emulator would wait for its first byte.
  if (!existsSync(file)) throw new LabError(`there is no machine state ${file}`)
  await qmp.send('migrate-incoming', { uri: `exec:cat '${quotable(file)}'` })
  await until(qmp, 'query-status', ['paused', 'prelaunch', 'postmigrate'])
}

/** Asks until the answer's `status` is one of those wanted; a state of a few hundred MB takes a second or two. */
async function until(qmp: Qmp, question: string, wanted: readonly string[]): Promise<void> {
  const deadline = Date.now() + 120_000
  for (;;) {
    const { status, 'error-desc': why } = (await qmp.send(question)) as { status: string; 'error-desc'?: string }
    if (wanted.includes(status)) return
    if (status === 'failed') throw new LabError(`the emulator's state: ${why ?? status}`)
    if (Date.now() > deadline)
      throw new LabError(`the emulator's state is ${status}, ${wanted.join(' or ')} was wanted`)
    await sleep(50)
  }
}

/** A path inside single quotes of a shell command. */
function quotable(path: string): string {
  if (path.includes("'")) throw new LabError(`no quotes in paths of machine states: ${path}`)
  return path
}

/**
 * A pty on the emulator's console socket. QEMU's own pty drops what is not read at once, and was once seen to go silent
 * for good after a reset of the guest; behind a socket the guest's UART waits instead. `gone`: how the emulator ends.
 */
async function openConsole(qmp: Qmp, wire: string, tty: string, gone: Promise<never>): Promise<SerialPort> {
  const ends = [`PTY,link=${tty},rawer,wait-slave,pty-interval=0.01`, `UNIX-CONNECT:${wire}`]
  const bridge = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'socat', ...ends], { stdio: 'ignore' })
  const failed = new Promise<never>((_, reject) => {
    bridge.on('error', (error) => reject(new LabError(`socat does not start: ${error.message}`)))
    bridge.on('exit', (code) => reject(new LabError(`socat, the console's bridge, ended with ${code}`)))
  })
  failed.catch(() => {})
  const over = new AbortController()
  const opening = pathAppears(tty, over.signal).then(() => openSerial(tty, 115200))
  const connected = async () => {
    const chardevs = (await qmp.send('query-chardev')) as { label: string; filename: string }[]
    return chardevs.some(({ label, filename }) => label === 'console' && !filename.startsWith('disconnected:'))
  }
  try {
    const port = await Promise.race([opening, failed, gone])
    port.on('close', () => bridge.kill('SIGKILL'))
    const deadline = Date.now() + START_MS
    while (!(await connected())) {
      if (Date.now() > deadline) throw new LabError('the console bridge does not reach the emulator')
      await sleep(10)
    }
    return port
  } catch (error) {
    // Nothing of it stays: a bridge whose pty nobody opened would wait for ever.
    over.abort()
    bridge.kill('SIGKILL')
    opening.then(
      (port) => port.destroy(),
      () => {},
    )
    throw error
  }
}

async function pathAppears(path: string, stop: AbortSignal): Promise<void> {
  const deadline = Date.now() + START_MS
  while (!existsSync(path)) {
    if (stop.aborted || Date.now() > deadline) throw new LabError(`socat made no pty at ${path}`)
    await sleep(10)
  }
}

async function cut(child: ChildProcess, qmp: Qmp, exited: Promise<number | null>): Promise<void> {
  qmp.close()
  child.kill('SIGKILL')
  await exited
}
