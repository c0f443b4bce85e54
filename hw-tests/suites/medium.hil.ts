import { partitionStart } from '../harness/disk.ts'
import { expect, hil } from '../harness/hil.ts'

// Flash that is worn or write-protected: the emulated disk refuses. What was committed must keep running and booting.

const SECTOR = 512
const sectorOf = async (disk: string, partition: string, offset: number) =>
  (await partitionStart(disk, partition)) / SECTOR + offset / SECTOR

hil.override('needs', ['bad-medium'])
// The kernel says each refused write.
hil.override('allow', ['filesystem-error'])

hil.describe('a worn cell in the other slot', () => {
  hil.override('faults', {
    make: async (disk) => [{ on: 'write', errno: 5, sector: await sectorOf(disk, 'rootfs-b', 1024 * 1024) }],
  })

  hil('the install fails with a reason, arms nothing, and the device goes on', async ({ dut, kit, server }) => {
    const address = server.offer('/next', { from: kit.bundle('next').path })
    const answer = await dut.bistable(`install ${address}`)
    expect(answer.body).toMatchObject({
      ok: false,
      error: { code: 'SLOT_WRITE_FAILED', next: expect.stringMatching(/\w/) },
    })
    expect(await dut.status()).toMatchObject({
      state: 'idle',
      running: { slot: 'a' },
      slots: { a: { role: 'primary' }, b: { role: 'other' } },
      boot: { problem: null },
      lastFailure: { code: 'SLOT_WRITE_FAILED' },
    })
  })
})

hil.describe('a boot state that takes no writes', () => {
  hil.override('faults', {
    make: async (disk) =>
      Promise.all(
        [512, 1024].map(async (sector) => ({
          on: 'write' as const,
          errno: 5,
          sector: await sectorOf(disk, 'bootstate', sector * SECTOR),
        })),
      ),
  })

  hil('nothing is armed; after a power cut the old slot boots', async ({ dut, kit, server }) => {
    const address = server.offer('/next', { from: kit.bundle('next').path })
    expect((await dut.bistable(`install ${address}`)).error).toBe('BOOT_STATE_WRITE')
    expect(await dut.status()).toMatchObject({ running: { slot: 'a' }, slots: { a: { role: 'primary' } } })
    await dut.powerCut()
    await dut.powerOn()
    await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
    await expect(dut).toRun({ slot: 'a', release: '1.2' })
  })
})
