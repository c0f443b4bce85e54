import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { gptPartition } from '../../bootloader/gpt.ts'
import { arm, commit, freshState } from '../../bootloader/machine.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { unpackModule } from '../../initramfs/modules.ts'
import { bootImages } from '../helpers/boot-images.ts'
import { copyInto, makeDisk, readAt } from '../helpers/disk.ts'
import { debianKernel, EMULATED } from '../helpers/kernel.ts'
import { have, run } from '../helpers/run.ts'
import { bootUntil, writeInitrd } from '../helpers/uefi-machine.ts'

/**
 * Real firmware (OVMF) decides from variables that the backend made: a system on the removable path stores them through
 * a real efivarfs, and the firmware starts the kernels of the slots itself.
 */

const SYSTEMD_BOOT = '/usr/lib/systemd/boot/efi/systemd-bootx64.efi'
const ready = have('qemu-system-x86_64', 'socat', 'sgdisk', 'mkfs.fat', 'mcopy')
const dir = mkdtempSync(join(tmpdir(), 'bistable-efi-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** Marks the second try; a name of the class that efivarfs lets anybody write. */
const MARK = 'Boot0BAD-8be4df61-93ca-11d2-aa0d-00e098032b8c'

const INIT = `#!/bin/sh
b=/bin/busybox
vars=/sys/firmware/efi/efivars
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b insmod /modules/efivarfs.ko
$b mount -t efivarfs efivarfs $vars
store() { for file in $1/*; do $b cat $file >$vars/\${file##*/} || echo "system: $file is refused"; done; }
for word in $($b cat /proc/cmdline); do case $word in bistable.slot=*|bistable.boot=*) line="$line $word" ;; esac; done
next=none; [ -e $vars/BootNext-* ] && next=set
echo "system:$line BootNext=$next end"
case $line in
  '') store /files/arm ;;
  *slot=a*) [ -e $vars/${MARK} ] || { $b cat /files/mark/* >$vars/${MARK}; store /files/again; } ;;
  *boot=try*) [ -e $vars/${MARK} ] && store /files/commit ;;
esac
$b reboot -f
`

test.skipIf(!ready)('one try by BootNext, the way back by BootOrder, a commit', async () => {
  const kernel = debianKernel()
  const modules = `${kernel.root}/lib/modules/${kernel.release}/kernel/fs/efivarfs`
  const [module = ''] = readdirSync(modules)
  const efivarfs = unpackModule(module, readFileSync(join(modules, module)))
  const sizes = {
    esp: 40960,
    bootstate: 1024,
    'boot-a': 40960,
    'rootfs-a': 64,
    'boot-b': 40960,
    'rootfs-b': 64,
    data: 64,
  }
  const disk = makeDisk(join(dir, 'disk.img'), sizes)
  const read = async (offset: number, length: number) => readAt(disk.path, offset, length)
  writeInitrd(join(dir, 'initrd'), INIT, { 'modules/efivarfs.ko': efivarfs })
  const images = await bootImages(
    dir,
    kernel.vmlinuz,
    join(dir, 'initrd'),
    `console=ttyS0,115200 quiet loglevel=0 ${EMULATED}`,
  )

  // What the backend writes, step by step, as files of an efivarfs.
  const folder = join(dir, 'efivars')
  mkdirSync(folder)
  const edge = { ...images, bootPartition: (slot: string) => gptPartition(read, `boot-${slot}`) }
  const backend = await openBackend({ boot: { kind: 'efi-variables', folder } }, edge)
  const now = async () => (await backend.read()).state ?? freshState('a')
  const files: Record<string, Uint8Array> = {}
  const keep = (set: string) => {
    cpSync(folder, join(dir, set), { recursive: true })
    for (const name of readdirSync(folder)) files[`files/${set}/${name}`] = readFileSync(join(folder, name))
  }
  await backend.write(freshState('a'))
  await backend.write(arm(await now(), 'b', 1))
  keep('arm')
  keep('again')
  rmSync(join(folder, 'BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c'))
  await backend.write(commit(await now(), 'b'))
  keep('commit')
  const [option = ''] = Object.keys(files).filter((name) => name.includes('/arm/BootB15B'))
  files['files/mark/mark'] = files[option] ?? new Uint8Array()

  // The slots' own initramfs knows the sets too: it is the same for all three systems.
  writeInitrd(join(dir, 'initrd'), INIT, { 'modules/efivarfs.ko': efivarfs, ...files })
  for (const slot of ['a', 'b'] as const) {
    run('mcopy', ['-o', '-i', join(dir, `boot-${slot}`), join(dir, 'initrd'), '::initrd.img'])
    copyInto(disk, `boot-${slot}`, join(dir, `boot-${slot}`))
  }
  const esp = join(dir, 'esp.fat')
  run('mkfs.fat', ['-F', '16', '-C', esp, String(sizes.esp)])
  const loader = join(dir, 'esp')
  mkdirSync(join(loader, 'EFI/BOOT'), { recursive: true })
  mkdirSync(join(loader, 'loader/entries'), { recursive: true })
  copyFileSync(SYSTEMD_BOOT, join(loader, 'EFI/BOOT/BOOTX64.EFI'))
  copyFileSync(kernel.vmlinuz, join(loader, 'vmlinuz'))
  copyFileSync(join(dir, 'initrd'), join(loader, 'initrd.img'))
  writeFileSync(join(loader, 'loader/loader.conf'), 'timeout 0\n')
  const entry = `title writer\nlinux /vmlinuz\ninitrd /initrd.img\noptions console=ttyS0,115200 quiet loglevel=0 ${EMULATED}\n`
  writeFileSync(join(loader, 'loader/entries/writer.conf'), entry)
  run('sh', ['-c', `mcopy -s -i ${esp} ${loader}/* ::`])
  copyInto(disk, 'esp', esp)

  const said = (slot: string, boot: string) => `system: bistable.slot=${slot} bistable.boot=${boot} BootNext=none end`
  await bootUntil(
    disk.path,
    [
      'system: BootNext=none end',
      said('b', 'try'),
      said('a', 'committed'),
      said('b', 'try'),
      said('b', 'committed'),
      said('b', 'committed'),
    ],
    join(dir, 'console.log'),
  )
  expect(await now()).toMatchObject({ primary: 'b', spare: true })
})
