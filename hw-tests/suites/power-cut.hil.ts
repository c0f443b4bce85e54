import { setTimeout as sleep } from 'node:timers/promises'
import { expect, hil } from '../harness/hil.ts'
import { campaign, seeded } from '../harness/random.ts'

// Half of the cuts fall into an install, half into the first boot of what was installed. HIL_SEED=… does a run again,
// HIL_CUTS=… does more. Each cut hits the device that the one before left behind.
const { seed, count } = campaign(process.env, Date.now(), 4)
const random = seeded(seed)

const INSTALL_MS = 15_000
const TRY_BOOT_MS = 20_000
const BOOT_MS = 300_000

hil(
  `${count} power cuts at random moments (seed ${seed}): it always boots, and the next install succeeds`,
  async ({ dut, kit, server, task }) => {
    console.log(`power cuts: HIL_SEED=${seed} HIL_CUTS=${count}`)
    const address = server.offer('/next.bundle', { from: kit.bundle('next').path })
    const base = server.offer('/base.bundle', { from: kit.bundle('base').path })
    expect([address, base, task.name]).toHaveLength(3)
    for (let cut = 0; cut < count; cut++) {
      const during = cut % 2 === 0 ? 'install' : 'try'
      const after = Math.round(random() * (during === 'install' ? INSTALL_MS : TRY_BOOT_MS))
      console.log(`power cut ${cut + 1} of ${count}: ${after} ms into the ${during}`)
      if (during === 'install') await dut.type(`bistable install ${address} --json`)
      else {
        expect(await dut.bistable(`install ${address} --force`)).toMatchObject({ code: 0 })
        await dut.reboot()
        await dut.nextBoot(BOOT_MS)
      }
      await sleep(after)
      await dut.powerCut()
      await dut.powerOn()
      const boot = await dut.nextBoot(BOOT_MS)
      const up = await dut.next(['running', 'committed', 'fell-back'], { timeoutMs: BOOT_MS, fatal: ['panic', 'boot'] })
      expect(up.fields['slot']).toBe(boot.slot)
    }
  },
)
