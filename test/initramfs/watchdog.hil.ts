import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, expect, test } from 'vitest'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { grubImage } from '../../bootloader/grub-image.ts'
import { FILES, REASON } from '../../bootloader/layout.ts'
import { arm, freshState } from '../../bootloader/machine.ts'
import { decodeReason } from '../../bootloader/reason.ts'
import { Console } from '../../hw-tests/harness/console.ts'
import { startQemu } from '../../hw-tests/harness/qemu.ts'
import { planInitramfs } from '../../initramfs/build.ts'
import { compressArchive } from '../../initramfs/compress.ts'
import { packCpio } from '../../initramfs/cpio.ts'
import { copyInto, makeDisk, readAt, writeAt } from '../helpers/disk.ts'
import { hostSource } from '../helpers/host-source.ts'
import { fillSlot } from '../helpers/initramfs-vm.ts'
import { debianKernel, EMULATED } from '../helpers/kernel.ts'
import { have, run } from '../helpers/run.ts'

/**
 * The hardware watchdog (QEMU's i6300esb) against hangs: real UEFI, real GRUB, a generic Debian kernel, one power-on.
 * Slot b hangs in another place in each of its three tries; nothing but the watchdog ever resets it.
 */

const ready = have(
  'qemu-system-x86_64',
  'socat',
  'mksquashfs',
  'veritysetup',
  'sgdisk',
  'mkfs.fat',
  'mcopy',
  'grub-mkimage',
)
const dir = mkdtempSync(join(tmpdir(), 'bistable-watchdog-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** A slow machine needs a few for one stage. */
const SECONDS = 10

const SYSTEM = `#!/bin/sh
b=/bin/busybox
read -r line </proc/cmdline
case $line in
  *bistable.left=1*)
    echo "system: the kernel hangs"
    # panic=0: it says so and then does nothing for ever.
    echo c >/proc/sysrq-trigger ;;
  *bistable.boot=try*)
    echo "system: nobody starts the agent"
    $b sleep 3600 ;;
esac
$b printf . 2>/dev/null >/dev/watchdog && echo "system: feeds the watchdog"
exec 9>/dev/watchdog
n=0
while :; do echo . >&9; $b sleep 1; n=$((n + 1)); echo "system: up for $n s"; done
`

/** The shipped initramfs; as a double it hangs in the first try while it looks for its disk. */
async function initramfs(root: string, hangs: boolean): Promise<Uint8Array> {
  const options = {
    modules: ['i6300esb', 'virtio_blk', 'virtio_pci'],
    watchdog: '/dev/watchdog',
    watchdogSeconds: SECONDS,
  }
  const plan = await planInitramfs(hostSource(root), options)
  const entries = plan.entries.map((entry) => {
    if (entry.type !== 'file' || entry.path !== 'init' || !hangs) return entry
    const text = Buffer.from(entry.bytes).toString()
    const broken = text.replace('\nenter find\n', '\nenter find\ngrep -q left=2 /proc/cmdline && sleep 3600\n')
    expect(broken).not.toBe(text)
    return { ...entry, bytes: Buffer.from(broken) }
  })
  return compressArchive(packCpio(entries), plan.compression)
}

async function makeDevice() {
  const kernel = debianKernel('generic')
  const boot = 48 * 1024
  const sizes = {
    esp: 8192,
    bootstate: 1024,
    'boot-a': boot,
    'rootfs-a': 4096,
    'boot-b': boot,
    'rootfs-b': 4096,
    data: 16384,
  }
  const disk = makeDisk(join(dir, 'disk.img'), sizes)
  const at = (name: string) => join(dir, name)
  await grubImage(at('BOOTX64.EFI'))
  run('mkfs.fat', ['-C', at('esp'), String(sizes.esp)])
  run('mmd', ['-i', at('esp'), '::EFI', '::EFI/BOOT'])
  run('mcopy', ['-i', at('esp'), at('BOOTX64.EFI'), '::EFI/BOOT/'])
  copyInto(disk, 'esp', at('esp'))
  writeAt(disk.path, disk.offsets.bootstate, await bootstateImage(arm(freshState('a'), 'b')))
  run('mke2fs', ['-q', '-t', 'ext4', '-E', `offset=${disk.offsets.data}`, disk.path, `${sizes.data}k`])
  for (const slot of ['a', 'b'] as const) {
    const { root, length } = fillSlot(dir, disk, slot, { 'sbin/init': SYSTEM })
    const folder = at(`boot-${slot}`)
    mkdirSync(folder)
    run('cp', [kernel.vmlinuz, join(folder, 'vmlinuz')])
    writeFileSync(join(folder, 'initrd.img'), await initramfs(kernel.root, slot === 'b'))
    const args = `bistable.root=${root} bistable.length=${length} console=ttyS0,115200 quiet loglevel=4 panic=0 ${EMULATED}`
    writeFileSync(join(folder, 'boot.cfg'), encodeBootCfg({ release: slot === 'a' ? '0.1' : '0.2', args }))
    run('mkfs.fat', ['-C', `${folder}.fat`, String(boot)])
    run('mcopy', ['-i', `${folder}.fat`, ...['vmlinuz', 'initrd.img', 'boot.cfg'].map((f) => join(folder, f)), '::'])
    copyInto(disk, `boot-${slot}`, `${folder}.fat`)
  }
  return disk
}

test.skipIf(!ready)(
  'a hang in the initramfs, in the kernel, and in user space before the agent: each costs a try, then the old slot runs',
  async () => {
    const disk = await makeDevice()
    const extra = ['-device', 'i6300esb', '-action', 'watchdog=reset']
    const machine = await startQemu({ disk: disk.path, memoryMiB: 512, extra })
    const console = new Console(machine.port, { transcript: join(dir, 'console.log') })
    let position = 0
    const says = async (text: string) => {
      const find = (seen: string) => (seen.includes(text) ? seen.indexOf(text) + text.length : undefined)
      position += await console.waitForText(find, text, position, { timeoutMs: 300_000 })
    }
    try {
      await says('bistable: boot slot=b boot=try left=2')
      await says('stage find slot=b boot=try')
      await says('bistable: boot slot=b boot=try left=1')
      expect(machine.qmp.events.filter((event) => event === 'WATCHDOG')).toHaveLength(1)
      await says('system: the kernel hangs')
      await says('bistable: boot slot=b boot=try left=0')
      expect(machine.qmp.events.filter((event) => event === 'WATCHDOG')).toHaveLength(2)
      await says('system: nobody starts the agent')
      await says('bistable: boot slot=a boot=fallback left=0 why=tries-spent')
      expect(machine.qmp.events.filter((event) => event === 'WATCHDOG')).toHaveLength(3)
      // A system that feeds it stays, for longer than it bites.
      await says(`system: up for ${SECONDS + 3} s`)
      await sleep(10)
      expect(machine.qmp.events.filter((event) => event === 'WATCHDOG')).toHaveLength(3)
    } finally {
      await console.close()
      await machine.cut()
    }
    const { starts } = decodeReason(readAt(disk.path, disk.offsets.bootstate + FILES[REASON].offset, 1024))
    expect(starts).toEqual({ a: 1, b: 3, up: 'a' })
  },
)
