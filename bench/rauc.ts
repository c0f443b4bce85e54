import { type ChildProcess, spawn } from 'node:child_process'
import { link, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Measured, measure, processCpuSeconds, tool, toolEnv, treeHighWater } from './measure.ts'

/** RAUC on a private D-Bus with slots of ours: what `rauc install` takes for the same images. */

export interface Rauc {
  /** A plain bundle of these images. */
  bundle(images: Readonly<Record<'boot' | 'rootfs', string>>): Promise<string>
  install(bundle: string): Promise<Measured>
  stop(): Promise<void>
}

type Slots = Readonly<Record<'a' | 'b', Readonly<Record<'boot' | 'rootfs', string>>>>

export async function startRauc(folder: string, slots: Slots): Promise<Rauc> {
  await mkdir(join(folder, 'data'), { recursive: true })
  await mkdir(join(folder, 'mnt'))
  const bus = join(folder, 'bus')
  const env = { DBUS_SYSTEM_BUS_ADDRESS: `unix:path=${bus}` }
  await writeFile(join(folder, 'bus.conf'), busConf(bus))
  await writeFile(join(folder, 'system.conf'), systemConf(folder, slots))
  const key = join(folder, 'key.pem')
  const cert = join(folder, 'cert.pem')
  // biome-ignore format: option and value stand together
  await tool('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, '-days', '2',
    '-subj', '/CN=bench'])

  const dbus = spawn('dbus-daemon', ['--config-file', join(folder, 'bus.conf'), '--nofork', '--nopidfile'], {
    stdio: 'ignore',
  })
  // biome-ignore format: option and value stand together
  const service = await waitFor(bus).then(() =>
    spawn('rauc', ['--conf', join(folder, 'system.conf'), '--mount', join(folder, 'mnt'), 'service',
      '--override-boot-slot', 'A'], { stdio: ['ignore', 'ignore', 'pipe'], env: { ...toolEnv, ...env } }),
  )
  let said = ''
  service.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-4096)
  })
  const kill = (): void => {
    for (const child of [service, dbus]) child.kill()
  }
  process.on('exit', kill)
  const stop = async (): Promise<void> => {
    process.off('exit', kill)
    for (const child of [service, dbus]) await end(child)
  }
  try {
    await waitForService(env, service)
  } catch (error) {
    await stop()
    throw new Error(`the rauc service does not come up: ${said}`, { cause: error })
  }
  return {
    bundle: async (images) => {
      const input = join(folder, 'input')
      await mkdir(input)
      for (const [name, path] of Object.entries(images)) await link(path, join(input, `${name}.img`))
      await writeFile(join(input, 'manifest.raucm'), MANIFEST)
      const path = join(folder, 'bench.raucb')
      await tool('rauc', ['bundle', '--cert', cert, '--key', key, '--keyring', cert, input, path])
      return path
    },
    install: async (bundle) => {
      const pid = service.pid ?? 0
      const before = processCpuSeconds(pid)
      let peak = 0
      const timer = setInterval(() => {
        peak = Math.max(peak, treeHighWater(pid))
      }, 20)
      const client = await measure('rauc', ['install', bundle], { env }).finally(() => clearInterval(timer))
      return {
        ...client,
        cpuSeconds: client.cpuSeconds + processCpuSeconds(pid) - before,
        peakMiB: client.peakMiB + peak / 1024,
      }
    },
    stop,
  }
}

const MANIFEST = `[update]
compatible=bench
version=1

[bundle]
format=plain

[image.rootfs]
filename=rootfs.img

[image.boot]
filename=boot.img
`

function systemConf(folder: string, slots: Slots): string {
  const parts = [
    `[system]\ncompatible=bench\nbootloader=noop\ndata-directory=${join(folder, 'data')}`,
    `[keyring]\npath=${join(folder, 'cert.pem')}`,
  ]
  for (const [index, slot] of (['a', 'b'] as const).entries()) {
    const { boot, rootfs } = slots[slot]
    parts.push(`[slot.rootfs.${index}]\ndevice=${rootfs}\ntype=raw\nbootname=${slot.toUpperCase()}`)
    parts.push(`[slot.boot.${index}]\ndevice=${boot}\ntype=raw\nparent=rootfs.${index}`)
  }
  return `${parts.join('\n\n')}\n`
}

function busConf(path: string): string {
  return `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=${path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`
}

async function waitFor(path: string): Promise<void> {
  for (let i = 0; i < 100; i++) {
    if (
      await tool('test', ['-S', path]).then(
        () => true,
        () => false,
      )
    )
      return
    await sleep(50)
  }
  throw new Error('the private D-Bus does not come up')
}

async function waitForService(env: Record<string, string>, service: ChildProcess): Promise<void> {
  let last: unknown
  for (let i = 0; i < 100 && service.exitCode === null; i++) {
    try {
      await tool('rauc', ['status'], { env })
      return
    } catch (error) {
      last = error
    }
    await sleep(50)
  }
  throw last
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('close', resolve))
  child.kill('SIGTERM')
  await ended
}
