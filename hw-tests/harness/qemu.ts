import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SerialPort } from 'serialport'
import { LabError } from './lab-error.ts'
import { Qmp } from './qmp.ts'

/** A QEMU machine as a place: UEFI firmware, one virtio disk, a serial console on a pty, power by process. */

export interface QemuOptions {
  /** The raw disk image; the machine writes to it. */
  readonly disk: string
  readonly memoryMiB?: number
  /** Loopback port on this machine that the guest reaches as http://10.0.2.100/. */
  readonly httpPort?: number
  /** More emulator arguments, for tests of special hardware. */
  readonly extra?: readonly string[]
  readonly accel?: 'tcg' | 'kvm'
}

export interface QemuMachine {
  readonly port: SerialPort
  readonly qmp: Qmp
  /** SIGKILL: the guest's caches are gone at once. */
  cut(): Promise<void>
  reset(): Promise<void>
  readonly exited: Promise<number | null>
}

const FIRMWARE = [
  { code: '/usr/share/OVMF/OVMF_CODE_4M.fd', vars: '/usr/share/OVMF/OVMF_VARS_4M.fd' },
  { code: '/usr/share/OVMF/OVMF_CODE.fd', vars: '/usr/share/OVMF/OVMF_VARS.fd' },
]

export async function startQemu(options: QemuOptions): Promise<QemuMachine> {
  const firmware = FIRMWARE.find(({ code, vars }) => existsSync(code) && existsSync(vars))
  if (firmware === undefined) throw new LabError('no UEFI firmware here: install the Debian package ovmf')
  const scratch = await mkdtemp(join(tmpdir(), 'bistable-qemu-'))
  const vars = join(scratch, 'vars.fd')
  const control = join(scratch, 'qmp')
  await copyFile(firmware.vars, vars)
  const network =
    options.httpPort === undefined
      ? ['-nic', 'none']
      : [
          '-netdev',
          `user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:80-cmd:socat STDIO TCP:127.0.0.1:${options.httpPort}`,
          '-device',
          'virtio-net-pci,netdev=net,romfile=',
        ]
  const args = [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-S'],
    ...['-machine', `q35,accel=${options.accel ?? 'tcg'}`, '-cpu', options.accel === 'kvm' ? 'host' : 'max'],
    ...['-smp', '2', '-m', String(options.memoryMiB ?? 768)],
    ...['-drive', `if=pflash,format=raw,unit=0,readonly=on,file=${firmware.code}`],
    ...['-drive', `if=pflash,format=raw,unit=1,file=${vars}`],
    ...['-drive', `if=none,id=disk,format=raw,cache=writeback,discard=unmap,file=${options.disk}`],
    ...['-device', 'virtio-blk-pci,drive=disk,serial=bistable-disk'],
    ...['-device', 'virtio-rng-pci'],
    ...network,
    ...['-chardev', 'pty,id=console', '-serial', 'chardev:console'],
    ...['-qmp', `unix:${control},server=on,wait=off`],
    ...(options.extra ?? []),
  ]
  const child = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'pipe'] })
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
    child.on('error', (error) => reject(new LabError(`qemu-system-x86_64 does not start: ${error.message}`)))
    child.on('exit', (code) => reject(new LabError(`the emulator ended with ${code}: ${said}`)))
  })
  failed.catch(() => {})
  try {
    const qmp = await Promise.race([Qmp.connect(control, 10_000), failed])
    const path = await Promise.race([ptyOf(qmp), failed])
    const port = await openPort(path)
    // The console is open before the first instruction runs: nothing is lost.
    await qmp.send('cont')
    return {
      port,
      qmp,
      exited,
      cut: () => cut(child, qmp, exited),
      reset: async () => {
        await qmp.send('system_reset')
      },
    }
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  }
}

async function ptyOf(qmp: Qmp): Promise<string> {
  const chardevs = (await qmp.send('query-chardev')) as { label: string; filename: string }[]
  const path = chardevs.find(({ label }) => label === 'console')?.filename.replace(/^pty:/, '')
  if (path === undefined) throw new LabError('the emulator names no console pty')
  return path
}

function openPort(path: string): Promise<SerialPort> {
  return new Promise((resolve, reject) => {
    const port = new SerialPort({ path, baudRate: 115200 }, (error) =>
      error ? reject(new LabError(`the console ${path} does not open: ${error.message}`)) : resolve(port),
    )
  })
}

async function cut(child: ChildProcess, qmp: Qmp, exited: Promise<number | null>): Promise<void> {
  qmp.close()
  child.kill('SIGKILL')
  await exited
}
