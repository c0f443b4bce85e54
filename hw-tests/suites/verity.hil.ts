import { flipBit } from '../harness/disk.ts'
import { expect, hil } from '../harness/hil.ts'

// The time of making in a SquashFS superblock: the file system itself would never look at it. Only dm-verity does.
const MODIFICATION_TIME = 8

hil.override('begin', 'armed')
hil.override('allow', ['filesystem-error'])

hil(
  'one flipped bit in the armed slot: it does not start, the device falls back and says why',
  async ({ dut, kit }) => {
    const next = kit.bundle('next')
    await dut.powerCut()
    await dut.withMedium((disk) => flipBit(disk, 'rootfs-b', MODIFICATION_TIME))

    await dut.powerOn()
    await expect(dut).toFallBack({ to: 'a', from: next.release, reason: 'verity' })
    expect(dut.console.events.filter((e) => e.kind === 'trying')).toEqual([])
    expect(await dut.status()).toMatchObject({
      state: 'fallen-back',
      running: { slot: 'a', release: '1.2' },
      reason: { code: 'TRY_INITRAMFS', message: expect.stringMatching(/verity/) },
    })
    // And the damage is found from the running system, too.
    expect(await dut.bistable('verify b')).toMatchObject({ code: 8 })
  },
)
