import { cpSync, existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { operate } from '../../device/agent/operations.ts'
import { realProcesses } from '../../device/agent/real.ts'
import { nodeSys } from '../../device/slots/sys.ts'
import { kernelSticks, type Sticks } from '../../device/usb/sticks.ts'
import { Device, NEVER } from '../attacks/device.ts'
import { forge } from '../attacks/forge.ts'
import { attempt } from '../attacks/refused.ts'
import { haveTool, noise, run, scratch } from '../bundle/tools.ts'
import { signedRoot } from '../keys/helpers.ts'

// The kernel's own mount, on a loop device with ext4; FAT and exFAT are met on a device (hw-tests). Needs root.

const anchor = await signedRoot({}, [1, 2])
const UNITS = resolve(import.meta.dirname, '../../device/systemd')
const missing =
  process.getuid?.() !== 0 || !existsSync('/dev/loop-control') || !haveTool('losetup') || !haveTool('mkfs.ext4')

interface Loop {
  readonly image: string
  readonly device: string
}

function plugged(folder: string, files: Readonly<Record<string, Uint8Array>>): Loop {
  const content = join(folder, 'content')
  mkdirSync(content)
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(content, name), bytes)
  const image = join(folder, 'stick.img')
  writeFileSync(image, '')
  truncateSync(image, 24 << 20)
  run('mkfs.ext4', '-q', '-d', content, image)
  const device = run('losetup', '-f', '--show', image).trim()
  onTestFinished(() => void run('losetup', '-d', device))
  return { image, device }
}

async function world(files: Readonly<Record<string, Uint8Array>>, watch: (sticks: Sticks) => Sticks = (same) => same) {
  const folder = scratch()
  const loop = plugged(folder, files)
  const sticks = watch(kernelSticks(nodeSys(), realProcesses(''), folder))
  const device = await Device.make(folder, { anchor, sticks, slotBytes: 8 << 20 })
  return {
    folder,
    device,
    loop,
    use: () => operate(device.core, 'usb', { device: loop.device }, () => undefined, NEVER),
  }
}

const mounts = (folder: string) =>
  readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line.includes(folder))

describe.skipIf(missing)('a stick with ext4, mounted by the kernel', () => {
  it('is mounted read-only without programs and devices, and for writing only for the result', async () => {
    const seen: string[] = []
    const { folder, device, loop, use } = await world({ 'r.bundle': await forge() }, (sticks) => ({
      ...sticks,
      unmount: async () => {
        seen.push(...mounts('/stick ').map((line) => line.split(' ')[3] ?? ''))
        await sticks.unmount()
      },
    }))
    expect(await use()).toMatchObject({ release: '0.7', notes: [] })
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(
      seen.map((options) =>
        options.split(',').filter((one) => /^(ro|rw|nosuid|nodev|noexec|norecovery|noload)$/.test(one)),
      ),
    ).toEqual([
      ['ro', 'nosuid', 'nodev', 'noexec', expect.stringMatching(/^(norecovery|noload)$/)],
      ['rw', 'nosuid', 'nodev', 'noexec'],
    ])
    expect(mounts(folder)).toEqual([])
    // On the medium, read by another program.
    const result = JSON.parse(run('debugfs', '-R', 'cat /bistable-device-1.json', loop.image))
    expect(result).toMatchObject({ ok: true, code: 'OK', armed: '0.7', files: [{ name: 'r.bundle', code: 'OK' }] })
    run('e2fsck', '-fn', loop.image)
  })

  it('A15 C2 goes away in mid-install: a typed outcome, nothing mounted, and the same stick serves later', async () => {
    const bundle = await forge({ rootfs: noise(1200 * 4096) })
    const { folder, device, loop } = await world({ 'r.bundle': bundle })
    const whole = readFileSync(loop.image)
    let cut = false
    const emit = (message: object) => {
      const progress = 'progress' in message ? (message.progress as { phase: string; image?: string }) : undefined
      if (cut || progress?.phase !== 'fill' || progress.image !== 'rootfs') return
      cut = true
      // What the stick had is gone, and the kernel's copy of it.
      truncateSync(loop.image, 64 * 1024)
      run('dd', `if=${folder}/stick/r.bundle`, 'iflag=nocache', 'count=0', 'status=none')
    }
    const use = () => operate(device.core, 'usb', { device: loop.device }, emit, NEVER)
    const code = await attempt(use)
    expect(cut).toBe(true)
    expect(code).toBe('TRANSPORT_FILE_FAILED')
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
    expect(device.core.body.state.name).toBe('idle')
    expect(mounts(folder)).toEqual([])
    expect(await attempt(use)).toBe('USB_MOUNT')
    writeFileSync(loop.image, whole)
    expect(await attempt(use)).toBe('accepted')
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
  })
})

describe('what starts it', () => {
  it.skipIf(!haveTool('systemd-analyze'))('systemd takes the units', () => {
    const folder = scratch()
    cpSync(UNITS, folder, { recursive: true })
    for (const name of ['bistable-agent.service', 'bistable-usb@.service']) {
      const unit = readFileSync(join(folder, name), 'utf8').replaceAll('/usr/bin/bistable', '/bin/true')
      writeFileSync(join(folder, name), unit)
      // Fails, and says why, when systemd would not load it.
      expect(run('systemd-analyze', 'verify', join(folder, name))).toBe('')
    }
  })

  it('the rule asks the unit for USB file systems only', () => {
    const [rule = ''] = readFileSync(join(UNITS, '90-bistable-usb.rules'), 'utf8')
      .split('\n')
      .filter((line) => /^[A-Z]/.test(line))
    expect(rule.split(', ')).toEqual(
      expect.arrayContaining([
        'ACTION=="add"',
        'SUBSYSTEMS=="usb"',
        'ENV{ID_FS_USAGE}=="filesystem"',
        'ENV{SYSTEMD_WANTS}+="bistable-usb@%k.service"',
      ]),
    )
  })
})
