import { setTimeout as sleep } from 'node:timers/promises'
import type { BootEvent } from '../harness/boot-states.ts'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import { DutError } from '../harness/lab-error.ts'
import { campaign, seeded } from '../harness/random.ts'

// One cut in each named phase, at a seeded moment inside it; HIL_CUTS=… makes more in each. HIL_SEED=… does a run again.
const { seed, count } = campaign(process.env, Date.now(), 1)
const random = seeded(seed)
const BOOT_MS = 300_000

/** Each reaches its phase on a device that runs slot a and is offered the release. */
const INSTALL: Readonly<Record<string, (dut: Dut, address: string) => Promise<void>>> = {
  'what is there is being looked at': (dut, address) =>
    installUntil(dut, address, /looking at what is there rootfs [2-8]0%/),
  'the slot is being written': (dut, address) => installUntil(dut, address, /writing rootfs [2-8]0%/),
  'the slot is being read back': (dut, address) => installUntil(dut, address, /reading back rootfs [2-8]0%/),
  'the slot has been verified': (dut, address) => installUntil(dut, address, /state=verified/),
  'the slot has just been armed': (dut, address) => installUntil(dut, address, /state=armed/),
}

/** And these on one where it is armed in slot b. */
const TRY: Readonly<Record<string, (dut: Dut) => Promise<void>>> = {
  'the device is going down': (dut) => dut.reboot(),
  // Some firmware says nothing: then it has just been counted.
  'the boot loader counts the try': (dut) => tryUntil(dut, 'firmware', 'boot'),
  'the kernel starts': (dut) => tryUntil(dut, 'kernel'),
  'the initramfs opens the slot': (dut) => tryUntil(dut, 'initramfs'),
  'the agent checks its health': (dut) => tryUntil(dut, 'trying'),
  'the slot is committed': (dut) => tryUntil(dut, 'committed'),
}

async function installUntil(dut: Dut, address: string, phase: RegExp): Promise<void> {
  const from = dut.console.position()
  // Not to a terminal: plain lines, one for ten percent.
  await dut.type(`bistable install ${address} 2>&1 | cat`)
  const reached = (text: string) => {
    if (phase.test(text)) return true
    const over = / is armed in slot |bistable: [A-Z]+_[A-Z_]+: .*/.exec(text)?.[0]
    if (over !== undefined) throw new DutError(`the install was over before ${phase}: ${over}`)
    return undefined
  }
  await dut.console.waitForText(reached, `${phase}`, from, { timeoutMs: BOOT_MS })
}

async function tryUntil(dut: Dut, ...kinds: readonly BootEvent['kind'][]): Promise<void> {
  await dut.reboot()
  await dut.next(kinds, { timeoutMs: BOOT_MS })
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

function cutsPower(phase: string, reach: (dut: Dut, address: string) => Promise<void>): void {
  for (let cut = 0; cut < count; cut++) {
    const pause = Math.floor(random() * 900)
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

for (const [phase, reach] of Object.entries(INSTALL)) cutsPower(phase, reach)

hil.describe('with a release armed', () => {
  hil.override('begin', 'armed')
  for (const [phase, reach] of Object.entries(TRY)) cutsPower(phase, reach)
})
