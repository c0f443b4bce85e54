import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { arm, commit, freshState, rollBack } from '../../bootloader/machine.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { bootImages } from '../helpers/boot-images.ts'
import { debianKernel, EMULATED } from '../helpers/kernel.ts'
import { have } from '../helpers/run.ts'
import { bootUntil, makeEspDisk, readEsp, writeInitrd } from '../helpers/uefi-machine.ts'

/** The real systemd-boot under OVMF decides from what the backend wrote, counts by renaming, and starts real kernels. */

const SYSTEMD_BOOT = '/usr/lib/systemd/boot/efi/systemd-bootx64.efi'
const ready = have('qemu-system-x86_64', 'socat', 'sgdisk', 'mkfs.fat', 'mcopy') && haveLoader()
const dir = mkdtempSync(join(tmpdir(), 'bistable-sdboot-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

function haveLoader(): boolean {
  const found = readdirSync('/usr/lib/systemd').includes('boot') && readdirSync('/usr/lib/systemd/boot').includes('efi')
  if (!found && process.env['CI']) throw new Error('missing on this machine: the Debian package systemd-boot-efi')
  if (!found) console.warn('skipped: the Debian package systemd-boot-efi is missing')
  return found
}

const INIT = `#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for word in $($b cat /proc/cmdline); do case $word in bistable.slot=*|bistable.boot=*|bistable.release=*) line="$line $word" ;; esac; done
echo "system:$line end"
$b reboot -f
`

test.skipIf(!ready)('tries, counts, falls back, commits and rolls back', async () => {
  const kernel = debianKernel()
  writeInitrd(join(dir, 'initrd'), INIT)
  const edge = await bootImages(
    dir,
    kernel.vmlinuz,
    join(dir, 'initrd'),
    `console=ttyS0,115200 quiet loglevel=0 ${EMULATED}`,
  )
  const esp = join(dir, 'esp')
  mkdirSync(join(esp, 'EFI/BOOT'), { recursive: true })
  mkdirSync(join(esp, 'loader/entries'), { recursive: true })
  copyFileSync(SYSTEMD_BOOT, join(esp, 'EFI/BOOT/BOOTX64.EFI'))
  writeFileSync(join(esp, 'loader/loader.conf'), 'timeout 0\nconsole-mode keep\n')
  const backend = await openBackend({ boot: { kind: 'systemd-boot', esp } }, edge)
  const now = async () => (await backend.read()).state ?? freshState('a')
  const disk = join(dir, 'disk.img')
  /** Boots what the backend wrote until all was said, then takes what systemd-boot made of the entries. */
  const boots = async (...words: readonly string[]) => {
    makeEspDisk(disk, esp, 64)
    await bootUntil(
      disk,
      words.map((word) => `system: ${word} end`),
      join(dir, 'console.log'),
    )
    readEsp(disk, 'loader/entries', join(esp, 'loader/entries'))
  }
  const a = 'bistable.slot=a bistable.release=0.1 bistable.boot=committed'
  const b = 'bistable.slot=b bistable.release=0.2 bistable.boot=try'

  await backend.write(freshState('a'))
  await backend.write(arm(await now(), 'b', 2))
  await boots(b, b, a)
  expect(await now()).toMatchObject({ primary: 'a', trial: 'b', left: 0 })

  await backend.write(arm(await now(), 'b', 2))
  await boots(b)
  expect(await now()).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
  await backend.write(commit(await now(), 'b'))
  const committed = b.replace('try', 'committed')
  await boots(committed)
  expect(await now()).toMatchObject({ primary: 'b', trial: undefined, spare: true })

  await backend.write(rollBack(await now(), 1))
  await boots(a.replace('committed', 'try'), committed)
  expect(await now()).toMatchObject({ primary: 'b', trial: 'a', left: 0 })
})
