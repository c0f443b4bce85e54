import { partitionStart, wipe } from '../harness/disk.ts'
import { expect, hil } from '../harness/hil.ts'

// The boot state as the boot loader meets it: it takes no write, or it is gone. What was committed last boots, and says so.

hil.override('begin', 'armed')

const SECTOR = 512
/** The two copies and the reason. */
const BLOCKS = [512, 1024, 1536]
const BOOT_MS = 300_000

hil.describe('a boot state that the boot loader cannot write to', () => {
  hil.override('needs', ['bad-medium'])
  // The kernel says each refused write.
  hil.override('allow', ['filesystem-error'])

  hil('the armed release is not tried, and the device says why', async ({ dut, kit }) => {
    const { release } = kit.bundle('next')
    await dut.powerCut()
    const first = (await partitionStart(dut.disk, 'bootstate')) / SECTOR
    // Either boot loader writes one sector or two of a block.
    const sectors = BLOCKS.flatMap((block) => [block, block + 1])
    const faults = sectors.map((sector) => ({ on: 'write' as const, errno: 5, sector: first + sector }))
    await dut.powerOn({ faults })
    await expect(dut).toBoot({ slot: 'a', boot: 'fallback', why: 'counter-unwritable' })
    await dut.next(['running', 'fell-back'], { timeoutMs: BOOT_MS, fatal: ['boot', 'panic'] })
    expect(await dut.status()).toMatchObject({
      state: 'fallen-back',
      running: { slot: 'a', release: '1.2', why: 'counter-unwritable' },
      slots: { a: { role: 'primary' }, b: { release } },
      reason: { code: 'TRY_COUNTER_UNWRITABLE' },
      // Nor could the agent take the trial out of it.
      lastFailure: { code: 'BOOT_STATE_WRITE' },
    })
    expect(await dut.bistable('verify')).toMatchObject({ code: 0 })
  })
})

hil.describe('a boot state partition that is gone', () => {
  hil.override('needs', ['medium'])

  hil('the slot committed last boots and says so; repair makes the partition', async ({ dut, kit }) => {
    const { release } = kit.bundle('next')
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'b', release })
    // The note of the committed slot is written behind the line that says so.
    expect(await dut.status()).toMatchObject({ state: 'committed' })
    await dut.powerCut()
    await dut.withMedium((disk) => wipe(disk, 'bootstate', 0, 1024 * 1024))
    await dut.powerOn()
    await expect(dut).toBoot({ slot: 'b', boot: 'fallback', why: 'state-unreadable' })
    await dut.next(['running'], { timeoutMs: BOOT_MS, fatal: ['boot', 'panic'] })
    const lost = (await dut.status()) as { readonly boot: { readonly problem: unknown } }
    expect(lost).toMatchObject({ running: { slot: 'b', release, why: 'state-unreadable' } })
    expect(lost.boot.problem).toMatchObject({ code: expect.stringMatching(/^BOOT_STATE_/) })
    expect(await dut.bistable('repair')).toMatchObject({ code: 0 })
    expect(await dut.status()).toMatchObject({ boot: { problem: null }, slots: { b: { role: 'primary' } } })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'committed', why: 'ok' })
    await dut.next(['running'], { timeoutMs: BOOT_MS, fatal: ['boot', 'panic'] })
    expect(await dut.status()).toMatchObject({ running: { slot: 'b', release }, boot: { problem: null }, problems: [] })
  })
})
