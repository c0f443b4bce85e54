import { setTimeout as sleep } from 'node:timers/promises'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import { campaign, seeded } from '../harness/random.ts'

// Cuts alternate: one into an install, one into the first boot of what was then installed. Each hits the device that the
// one before left behind. Where a cut falls is told in steps of the work, not in time: a slow machine cuts as a fast one.
// HIL_SEED=… does a run again, HIL_CUTS=… does more.
const { seed, count } = campaign(process.env, Date.now(), 4)
const random = seeded(seed)
const upTo = (most: number) => Math.floor(random() * (most + 1))

/** Progress lines of one install: seven phases, ten percent a line. */
const INSTALL_LINES = 75
/** Events from the boot loader's line to the agent's "committed": kernel, stages of the initramfs, trying. */
const BOOT_EVENTS = 11
const BOOT_MS = 300_000
/** A cut, a boot and an install take about 45 s; this is for a machine that has much else to do. */
const CUT_MS = 300_000

/** Starts an install and returns somewhere in it (or, with the last steps, after it). */
async function somewhereInInstall(dut: Dut, address: string): Promise<string> {
  const lines = upTo(INSTALL_LINES)
  const more = upTo(400)
  const from = dut.console.position()
  // Not to a terminal: plain lines, one for ten percent.
  await dut.type(`bistable install ${address} 2>&1 | cat`)
  const reached = (text: string) => {
    const armed = / is armed in slot /.test(text)
    const failed = /bistable: [A-Z]+_[A-Z_]+: .*/.exec(text)?.[0]
    const percents = text.match(/ \d+%/g)?.length ?? 0
    if (failed !== undefined) throw new Error(`the install failed before it was cut: ${failed}`)
    return armed || percents >= lines ? `progress line ${percents}` : undefined
  }
  const where = await dut.console.waitForText(reached, `${lines} progress lines`, from, { timeoutMs: BOOT_MS })
  await sleep(more)
  return `install, ${where} of about ${INSTALL_LINES}, and ${more} ms`
}

/** Reboots into what is armed and returns somewhere between the boot loader and the commit. */
async function somewhereInTry(dut: Dut, slot: 'a' | 'b'): Promise<string> {
  const events = upTo(BOOT_EVENTS)
  const more = upTo(1500)
  await dut.reboot()
  await expect(dut).toBoot({ slot, boot: 'try', why: 'ok' })
  let last = 'boot'
  for (let seen = 0; seen < events && last !== 'committed'; seen++)
    last = (await dut.next(['kernel', 'initramfs', 'trying', 'committed'], { timeoutMs: BOOT_MS })).kind
  await sleep(more)
  return `first try, ${last} (event ${events} of ${BOOT_EVENTS}), and ${more} ms`
}

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
      const where: string = armed ? await somewhereInTry(dut, other) : await somewhereInInstall(dut, address)
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
