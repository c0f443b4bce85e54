import { expect, hil } from '../harness/hil.ts'

// Back and forth between the slots: HIL_CYCLES times (4 unless told). Nothing may grow, and every cycle is a success.
hil.override('begin', 'armed')
const cycles = Number(process.env['HIL_CYCLES'] ?? 4)

hil(
  `${cycles} releases one after the other: each is committed, nothing grows`,
  { timeout: (cycles + 1) * 300_000 },
  async ({ dut, kit }) => {
    const used = async () => Number((await dut.run("df -k /var | awk 'NR==2 { print $3 }'")).output)
    const { release } = kit.bundle('next')
    let home: 'a' | 'b' = 'b'
    let first: number | undefined
    for (let cycle = 0; cycle < cycles; cycle++) {
      await dut.reboot()
      await expect(dut).toBoot({ slot: home, boot: 'try', why: 'ok' })
      await expect(dut).toRun({ slot: home, release: home === 'b' ? release : '1.2' })
      expect(await dut.status()).toMatchObject({ state: 'committed', problems: [], boot: { problem: null } })
      const now = await used()
      first ??= now
      // The log may fill to its bound; a megabyte per cycle would be a leak.
      expect(now - first, `KiB used on the data partition after cycle ${cycle + 1}`).toBeLessThan(1024)
      if (cycle === cycles - 1) break
      expect(await dut.bistable('rollback')).toMatchObject({ code: 0 })
      home = home === 'a' ? 'b' : 'a'
    }
    expect(await dut.bistable('verify')).toMatchObject({ code: 0 })
  },
)
