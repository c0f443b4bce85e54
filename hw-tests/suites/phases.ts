import { setTimeout as sleep } from 'node:timers/promises'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import { campaign, seeded } from '../harness/random.ts'

// One cut in each named phase, at a seeded moment inside it; HIL_CUTS=… makes more in each. HIL_SEED=… does a run again.

export const BOOT_MS = 300_000
const WITHIN_MS = 900

/** How a phase is reached on a device that is offered release `next` at this address. */
export type Phases = Readonly<Record<string, (dut: Dut, address: string) => Promise<void>>>

/** Cuts the power in each of these phases; what boots then runs, is whole, and can be updated. */
export function cutsPower(phases: Phases): void {
  const { seed, count } = campaign(process.env, Date.now(), 1)
  const random = seeded(seed)
  for (const [phase, reach] of Object.entries(phases))
    for (let cut = 0; cut < count; cut++) {
      const pause = Math.floor(random() * WITHIN_MS)
      hil(`power cut when ${phase}, and ${pause} ms (seed ${seed})`, async ({ dut, kit, server }) => {
        const { path, release } = kit.bundle('next')
        const address = server.offer('/next.bundle', { from: path })
        await reach(dut, address)
        await sleep(pause)
        await dut.powerCut()
        await comesBack(dut, address, release)
      })
    }
}

/** What boots after the cut runs and is whole; what was cut can be done again, and succeeds. */
async function comesBack(dut: Dut, address: string, release: string): Promise<void> {
  await dut.powerOn()
  const boot = await dut.nextBoot(BOOT_MS)
  expect(boot.why).toBe('ok')
  await expect(dut).toRun({ slot: boot.slot as 'a' | 'b', release: boot.slot === 'a' ? '1.2' : release })
  const status = (await dut.status()) as { slots: { b: { release: string | null } } }
  expect(status).toMatchObject({ busy: null, boot: { problem: null }, problems: [] })
  // The other slot has no release to verify until one has arrived as a whole.
  const empty = boot.slot === 'a' && status.slots.b.release === null
  const verified = await dut.bistable('verify')
  if (empty) expect(verified).toMatchObject({ error: 'VERIFY_NO_RELEASE' })
  else expect(verified).toMatchObject({ code: 0 })
  if (boot.slot === 'b') return
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
  await dut.reboot()
  await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
  await expect(dut).toRun({ slot: 'b', release })
}
