import { momentOfInstall, momentOfTry } from '../harness/cut-moments.ts'
import { expect, hil } from '../harness/hil.ts'
import { campaign, seeded } from '../harness/random.ts'

// Cuts alternate: one into an install, one into the first boot of what was then installed. Each hits the device that the
// one before left behind.
// HIL_SEED=… does a run again, HIL_CUTS=… does more; `npm run powercut -- --kill N` does many, each on a saved device.
// `npm test` makes one cut of each kind.
const { seed, count } = campaign(process.env, Date.now(), process.env['HIL_LONG'] === undefined ? 2 : 4)
const random = seeded(seed)
const BOOT_MS = 300_000
/** A cut, a boot and an install take about 45 s; this is for a machine that has much else to do. */
const CUT_MS = 300_000

hil(
  `${count} power cuts, seed ${seed}: what boots works, and the next install succeeds`,
  { timeout: (count + 1) * CUT_MS },
  async ({ dut, kit, server }) => {
    const { path, release } = kit.bundle('next')
    const address = server.offer('/next.bundle', { from: path })
    console.log(`power cuts: HIL_SEED=${seed} HIL_CUTS=${count}`)
    let home: 'a' | 'b' = 'a'
    let armed = false
    for (let cut = 0; cut < count; cut++) {
      const other: 'a' | 'b' = home === 'a' ? 'b' : 'a'
      const where: string = armed ? await momentOfTry(dut, other, random) : await momentOfInstall(dut, address, random)
      await dut.powerCut()
      console.log(`power cut ${cut + 1} of ${count}: ${where}`)

      await dut.powerOn()
      const boot = await dut.nextBoot(BOOT_MS)
      const up = await dut.next(['running', 'committed', 'fell-back'], {
        timeoutMs: BOOT_MS,
        fatal: ['panic', 'boot', 'initramfs-failed', 'emergency'],
      })
      expect(up.kind, up.line).not.toBe('fell-back')
      expect(up.fields['slot']).toBe(boot.slot)
      // A cut try leaves tries, so the new slot goes on; a cut install leaves the old one, unless it was over by then.
      if (armed || boot.slot === other) {
        expect(up.fields).toMatchObject({ slot: other, release })
        home = other
        armed = false
      } else {
        expect(boot).toMatchObject({ slot: home, boot: 'committed', why: 'ok' })
        expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
        armed = true
      }
      expect(await dut.status()).toMatchObject({
        state: expect.stringMatching(armed ? /^armed$/ : /^(idle|committed)$/),
        running: { slot: home },
        busy: null,
        boot: { problem: null },
        problems: [],
      })
      expect(await dut.bistable('verify')).toMatchObject({ code: 0 })
    }
  },
)
