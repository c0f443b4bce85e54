import { findIn, startOfFile, wipe } from '../harness/disk.ts'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'

// What can be broken between the boot loader and the first program. Each ends at home by itself.

hil.override('begin', 'armed')
hil.override('needs', ['medium'])

async function isHome(dut: Dut, from: string): Promise<void> {
  const status = await dut.status()
  expect(status).toMatchObject({
    state: 'fallen-back',
    running: { slot: 'a', release: '1.2' },
    slots: { a: { role: 'primary' }, b: { release: from } },
    blocked: [{ number: from }],
  })
}

/** Zeros over the first `length` bytes of a file of slot b's boot partition, which is found by its own first 64 bytes. */
async function wipeStart(disk: string, file: string, length: number): Promise<void> {
  const start = await startOfFile(disk, 'boot-b', file, 64)
  await wipe(disk, 'boot-b', await findIn(disk, 'boot-b', start), length)
}

hil('a boot partition that the boot loader cannot read', async ({ dut, kit }) => {
  const { release: from } = kit.bundle('next')
  await dut.powerCut()
  await dut.withMedium((disk) => wipe(disk, 'boot-b', 0, 64 * 1024))
  await dut.powerOn()
  await expect(dut).toFallBack({ to: 'a', from })
  await isHome(dut, from)
})

hil('a kernel that is no kernel', async ({ dut, kit }) => {
  const { release: from } = kit.bundle('next')
  await dut.powerCut()
  // Its magic number stands at 0x202 on x86, at 56 on arm64.
  await dut.withMedium((disk) => wipeStart(disk, 'vmlinuz', 1024))
  await dut.powerOn()
  await expect(dut).toFallBack({ to: 'a', from })
  await isHome(dut, from)
})

hil.describe('without an initramfs', () => {
  hil.override('allow', ['panic'])

  hil('the kernel finds no first program, panics, and the tries run out', async ({ dut, kit }) => {
    const { release: from } = kit.bundle('next')
    await dut.powerCut()
    // Not found by what its compression starts with: that stands inside of kernels, too, and one that cannot unpack itself
    // halts for good instead of panicking.
    await dut.withMedium((disk) => wipeStart(disk, 'initrd.img', 64 * 1024))
    await dut.powerOn()
    await expect(dut).toFallBack({ to: 'a', from, tries: 3, within: 600_000 })
    await isHome(dut, from)
  })
})

hil.describe('repair', () => {
  hil.override('begin', 'running')

  hil(
    'a boot state that was lost boots the committed slot, and is made whole from the running system',
    async ({ dut }) => {
      await dut.powerCut()
      await dut.withMedium(async (disk) => {
        for (const sector of [512, 1024]) await wipe(disk, 'bootstate', sector * 512, 1024)
      })
      await dut.powerOn()
      expect(await dut.nextBoot(300_000)).toMatchObject({ slot: 'a' })
      await expect(dut).toRun({ slot: 'a', release: '1.2' })
      expect(await dut.bistable('repair')).toMatchObject({ code: 0 })
      expect(await dut.status()).toMatchObject({ boot: { problem: null }, slots: { a: { role: 'primary' } } })
      await dut.reboot()
      await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
      await expect(dut).toRun({ slot: 'a', release: '1.2' })
    },
  )
})
