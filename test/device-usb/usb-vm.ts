import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { chmodSync, copyFileSync, cpSync, mkdirSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { Qmp } from '../../hw-tests/harness/qmp.ts'
import { deviceNode } from '../../scripts/device-node.ts'
import { debianKernel, EMULATED } from '../helpers/kernel.ts'
import { run } from '../helpers/run.ts'

/**
 * A machine with real USB: a generic Debian kernel (the cloud one has none) and, in its initramfs, the agent as it ships.
 * Slots and boot state are files in memory. Sticks are plugged and pulled while it runs.
 */
export interface UsbVm {
  /** Waits for a line that matches, behind the last one that was waited for. */
  line(wanted: RegExp): Promise<string>
  /** @param bytesPerSecond how fast the stick can be read */
  plug(image: string, bytesPerSecond?: number): Promise<void>
  /** At once, whatever is under way; the image may be read afterwards. */
  pull(): Promise<void>
  end(): Promise<void>
  readonly console: () => string
}

const MODULES = ['xhci_pci', 'usb_storage', 'sd_mod', 'vfat', 'exfat', 'nls_cp437', 'nls_ascii']
const MODULE_FILES = [
  'drivers/usb',
  'drivers/scsi',
  'fs/fat',
  'fs/exfat',
  'fs/nls',
  'block',
  'lib',
  'crypto',
  'arch/x86/crypto',
]

const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run/bistable /data/bistable /tmp
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in ${MODULES.join(' ')}; do modprobe $module || echo "test: no module $module"; done
for slot in boot-a rootfs-a boot-b rootfs-b; do truncate -s 24M /disk/$slot; done
echo "test: kernel $(uname -r)"
bistable agent
echo "test: the agent ended with $?"
poweroff -f
`

/** What is on the stick must be read again, not taken from memory; then the light says where the install is. */
const LED = `#!/bin/sh
[ "$1" = installing ] && echo 1 >/proc/sys/vm/drop_caches
echo "led: $*" >/dev/console
`

export async function startUsbVm(folder: string, root: Uint8Array, limitMs: number): Promise<UsbVm> {
  const kernel = debianKernel('generic')
  const tree = join(folder, 'tree')
  const put = (path: string, content: string | Uint8Array, mode = 0o644) => {
    mkdirSync(dirname(join(tree, path)), { recursive: true })
    writeFileSync(join(tree, path), content)
    chmodSync(join(tree, path), mode)
  }
  const copy = (path: string, from: string, mode = 0o644) => {
    mkdirSync(dirname(join(tree, path)), { recursive: true })
    copyFileSync(from, join(tree, path))
    chmodSync(join(tree, path), mode)
  }
  const repo = resolve(import.meta.dirname, '../..')
  execFileSync(process.execPath, [join(repo, 'scripts/build.mjs'), join(folder, 'dist')], { stdio: 'ignore' })
  const node = await deviceNode('x64')
  copy('bin/busybox', '/bin/busybox', 0o755)
  copy('usr/bin/bistable', join(repo, 'device/bin/bistable'), 0o755)
  copy('usr/lib/bistable/agent/node', node, 0o755)
  for (const name of ['ask.cjs', 'bistable.mjs', 'squashfs-worker.mjs', 'binding.node'])
    copy(`usr/lib/bistable/agent/${name}`, join(folder, 'dist/device', name))
  for (const line of run('ldd', [node]).split('\n')) {
    const library = /(\/\S+) \(0x/.exec(line)?.[1]
    if (library !== undefined)
      copy(library.includes('ld-linux') ? `lib64/${basename(library)}` : `lib/${basename(library)}`, library, 0o755)
  }
  const modules = `lib/modules/${kernel.release}`
  for (const part of MODULE_FILES)
    cpSync(join(kernel.root, modules, 'kernel', part), join(tree, modules, 'kernel', part), { recursive: true })
  for (const list of ['modules.order', 'modules.builtin']) copy(`${modules}/${list}`, join(kernel.root, modules, list))
  run('depmod', ['-b', tree, kernel.release])
  put('init', INIT, 0o755)
  put('led', LED, 0o755)
  put('etc/machine-id', `${'ab'.repeat(16)}\n`)
  const system = {
    product: 'demo',
    hardware: ['qemu-x86_64'],
    health: { required: [], wanted: [] },
    agent: { usb: { watch: 'poll', hook: '/led' } },
  }
  put('usr/lib/bistable/system.json', JSON.stringify(system))
  put('usr/lib/bistable/root.json', root)
  const slot = (name: string) => ({ boot: `/disk/boot-${name}`, rootfs: `/disk/rootfs-${name}` })
  const places = { bootstate: '/disk/bootstate', slots: { a: slot('a'), b: slot('b') } }
  put('etc/bistable/places.json', JSON.stringify(places))
  put('disk/bootstate', await bootstateImage(freshState('a')))
  const initrd = join(folder, 'initrd.img')
  execFileSync('sh', ['-c', `find . | cpio -o -H newc --quiet | zstd -q -1 -T2 -o '${initrd}'`], { cwd: tree })
  return await start(kernel.vmlinuz, initrd, join(folder, 'qmp'), limitMs)
}

async function start(vmlinuz: string, initrd: string, control: string, limitMs: number): Promise<UsbVm> {
  const words =
    'bistable.floor=0.1 bistable.slot=a bistable.release=0.1 bistable.boot=committed bistable.left=0 bistable.why=ok'
  const args = [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-machine', 'q35,accel=tcg', '-cpu', 'qemu64', '-smp', '1', '-m', '1024'],
    ...['-kernel', vmlinuz, '-initrd', initrd, '-append', `console=ttyS0 quiet panic=-1 ${EMULATED} ${words}`],
    ...['-device', 'qemu-xhci,id=xhci', '-serial', 'stdio', '-qmp', `unix:${control},server=on,wait=off`],
  ]
  const child: ChildProcess = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'qemu-system-x86_64', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let console = ''
  let heard: () => void = () => undefined
  let ended = false
  const hear = (piece: Buffer) => {
    console += piece.toString('latin1').replaceAll('\r', '')
    heard()
  }
  child.stdout?.on('data', hear)
  child.stderr?.on('data', hear)
  const exited = new Promise<void>((done) =>
    child.on('close', () => {
      ended = true
      heard()
      done()
    }),
  )
  const qmp = await Qmp.connect(control, 20_000)
  let position = 0
  let sticks = 0
  return {
    console: () => console,
    line: async (wanted) => {
      const deadline = Date.now() + limitMs
      for (;;) {
        const end = console.lastIndexOf('\n') + 1
        for (const line of console.slice(position, end).split('\n').slice(0, -1)) {
          position += line.length + 1
          if (wanted.test(line)) return line
        }
        if (ended || console.includes('test: no module') || Date.now() > deadline)
          throw new Error(`no line ${wanted}:\n${console.slice(-3000)}`)
        await new Promise<void>((resolve) => {
          heard = resolve
          setTimeout(resolve, 1000)
        })
      }
    },
    plug: async (image, bytesPerSecond) => {
      const name = `stick${++sticks}`
      const limits = bytesPerSecond === undefined ? {} : { 'bps-read': bytesPerSecond }
      await qmp.send('object-add', { 'qom-type': 'throttle-group', id: `${name}-group`, limits })
      await qmp.send('blockdev-add', { driver: 'file', 'node-name': `${name}-file`, filename: image })
      await qmp.send('blockdev-add', { driver: 'raw', 'node-name': `${name}-raw`, file: `${name}-file` })
      await qmp.send('blockdev-add', {
        ...{ driver: 'throttle', 'node-name': name, 'throttle-group': `${name}-group`, file: `${name}-raw` },
      })
      await qmp.send('device_add', { driver: 'usb-storage', id: name, drive: name, bus: 'xhci.0', removable: true })
    },
    pull: async () => {
      const name = `stick${sticks}`
      await qmp.send('device_del', { id: name })
      for (const node of [name, `${name}-raw`, `${name}-file`]) {
        // In use until the device is gone.
        for (let n = 0; n < 200; n++) {
          const gone = await qmp.send('blockdev-del', { 'node-name': node }).then(
            () => true,
            () => false,
          )
          if (gone) break
          await sleep(50)
        }
      }
    },
    end: async () => {
      qmp.close()
      child.kill('SIGKILL')
      await exited
    },
  }
}
