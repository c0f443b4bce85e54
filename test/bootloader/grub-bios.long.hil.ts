import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { biosImages } from '../../bootloader/grub-bios.ts'
import { chooseCopy, decodeCopy } from '../../bootloader/grub-env.ts'
import { grubImage } from '../../bootloader/grub-image.ts'
import { FILES } from '../../bootloader/layout.ts'
import { arm, freshState } from '../../bootloader/machine.ts'
import type { BootState } from '../../bootloader/state.ts'
import { Console } from '../../hw-tests/harness/console.ts'
import { startQemu } from '../../hw-tests/harness/qemu.ts'
import { bootImages } from '../helpers/boot-images.ts'
import { copyInto, type Disk, makeDisk, readAt, writeAt } from '../helpers/disk.ts'
import { debianKernel, EMULATED } from '../helpers/kernel.ts'
import { have } from '../helpers/run.ts'
import { writeInitrd } from '../helpers/uefi-machine.ts'

/**
 * The real GRUB, started by a BIOS: what it decides, and its menu for a person on the console, with the keys typed over
 * the serial line. Real kernels start and say with which words.
 */

const ready = have('qemu-system-x86_64', 'grub-mkimage', 'sgdisk', 'mkfs.fat', 'mcopy')
const dir = mkdtempSync(join(tmpdir(), 'bistable-grub-bios-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const INIT = `#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
for word in $($b cat /proc/cmdline); do case $word in bistable.slot=*|bistable.boot=*|bistable.left=*|bistable.recovery=*) line="$line $word" ;; esac; done
echo "system:$line end"
$b reboot -f
`
const CORE_SECTOR = 34
/** Control-N is the arrow down of a line without arrows. */
const [DOWN, ENTER] = ['\x0e', '\r']

let disk: Disk
const install = async (menuSeconds: number): Promise<void> => {
  const path = join(dir, `core-${menuSeconds}`)
  await grubImage(path, { platform: 'i386-pc', menuSeconds })
  const { code, core } = await biosImages(readFileSync(path), CORE_SECTOR)
  writeAt(disk.path, 0, code)
  writeAt(disk.path, CORE_SECTOR * 512, core)
}
const store = async (state: BootState): Promise<void> =>
  writeAt(disk.path, disk.offsets.bootstate, await bootstateImage(state))
const stored = (): BootState | undefined => {
  const copies = [0, 1].map((n) =>
    decodeCopy(readAt(disk.path, disk.offsets.bootstate + (FILES[n]?.offset ?? 0), 1024)),
  ) as [ReturnType<typeof decodeCopy>, ReturnType<typeof decodeCopy>]
  const copy = copies[chooseCopy(copies) ?? 0]
  return copy.kind === 'valid' ? copy.state : undefined
}

type Step = { readonly see: string } | { readonly type: string }
const see = (text: string): Step => ({ see: text })

/** Switches the machine on, sees and types in this order, and cuts the power. */
async function boot(...steps: readonly Step[]): Promise<void> {
  const machine = await startQemu({ disk: disk.path, profile: 'x86-bios', memoryMiB: 256 })
  const console = new Console(machine.port, { transcript: join(dir, 'console.log') })
  try {
    let position = 0
    for (const step of steps) {
      if ('type' in step) {
        await console.write(step.type)
        continue
      }
      const find = (seen: string) => (seen.includes(step.see) ? seen.indexOf(step.see) + step.see.length : undefined)
      position += await console.waitForText(find, step.see, position, { timeoutMs: 120_000 })
    }
  } finally {
    await console.close()
    await machine.cut()
  }
}

describe.skipIf(!ready)('GRUB on a PC with a BIOS', () => {
  beforeAll(async () => {
    const kernel = debianKernel()
    writeInitrd(join(dir, 'initrd'), INIT)
    const args = `console=ttyS0,115200 quiet loglevel=0 ${EMULATED}`
    await bootImages(dir, kernel.vmlinuz, join(dir, 'initrd'), args)
    const room = 40_960
    const sizes = { esp: 64, bootstate: 1024, 'boot-a': room, 'rootfs-a': 64, 'boot-b': room, 'rootfs-b': 64, data: 64 }
    disk = makeDisk(join(dir, 'disk.img'), sizes)
    for (const slot of ['a', 'b'] as const) copyInto(disk, `boot-${slot}`, join(dir, `boot-${slot}`))
    writeFileSync(join(dir, 'console.log'), '')
  })

  test('counts a try down before it starts the slot, and comes back when they are spent', async () => {
    await install(0)
    const armed = arm(freshState('a'), 'b', 2)
    await store(armed)
    await boot(
      see('bistable: boot slot=b boot=try left=1 why=ok release=0.2'),
      see('system: bistable.slot=b bistable.boot=try bistable.left=1 end'),
      see('bistable: boot slot=b boot=try left=0 why=ok release=0.2'),
      see('system: bistable.slot=b bistable.boot=try bistable.left=0 end'),
      see('bistable: boot slot=a boot=fallback left=0 why=tries-spent release=0.1'),
      see('system: bistable.slot=a bistable.boot=fallback bistable.left=0 end'),
    )
    expect(stored()).toEqual({ ...armed, left: 0 })
  })

  test('its menu starts either slot once, or a shell, for a person; no try is taken', async () => {
    await install(60)
    const armed = arm(freshState('a'), 'b', 2)
    await store(armed)
    const menu = [see('Start as the boot state says'), see('Recovery: a shell in the initramfs of the primary slot')]
    await boot(
      ...menu,
      { type: `${DOWN}${DOWN}${ENTER}` },
      see('bistable: boot slot=b boot=menu left=2 why=ok release=0.2'),
      see('system: bistable.slot=b bistable.boot=menu bistable.left=2 end'),
      ...menu,
      { type: `${DOWN}${ENTER}` },
      see('bistable: boot slot=a boot=menu left=2 why=ok release=0.1'),
      see('system: bistable.slot=a bistable.boot=menu bistable.left=2 end'),
      ...menu,
      { type: `${DOWN}${DOWN}${DOWN}${ENTER}` },
      see('bistable: boot slot=a boot=menu left=2 why=ok release=0.1'),
      see('bistable.boot=menu bistable.left=2 bistable.recovery=1 end'),
    )
    expect(stored()).toEqual(armed)
    await boot(...menu, { type: ENTER }, see('bistable: boot slot=b boot=try left=1 why=ok release=0.2'))
    expect(stored()).toEqual({ ...armed, left: 1 })
  })
})
