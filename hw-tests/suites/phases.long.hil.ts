import { setTimeout as sleep } from 'node:timers/promises'
import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import { DutError } from '../harness/lab-error.ts'
import { campaign, seeded } from '../harness/random.ts'

// One cut in each named phase, at a seeded moment inside it. HIL_SEED=… does a run again.
const { seed } = campaign(process.env, Date.now(), 0)
const random = seeded(seed)
const BOOT_MS = 300_000

/** Reaches the phase on a device that runs slot a and has been offered the release. */
const PHASES: Readonly<Record<string, (dut: Dut, address: string) => Promise<void>>> = {
  'what is there is being looked at': (dut, address) =>
    installUntil(dut, address, /looking at what is there rootfs [2-8]0%/),
  'the slot is being written': (dut, address) => installUntil(dut, address, /writing rootfs [2-8]0%/),
  'the slot is being read back': (dut, address) => installUntil(dut, address, /reading back rootfs [2-8]0%/),
  'the slot has been verified': (dut, address) => installUntil(dut, address, /state=verified/),
  'the slot has just been armed': (dut, address) => installUntil(dut, address, /state=armed/),
  'the device is going down': async (dut, address) => {
    await installed(dut, address)
    await dut.reboot()
  },
  'the boot loader counts the try': (dut, address) => tryUntil(dut, address, 'firmware'),
  'the kernel starts': (dut, address) => tryUntil(dut, address, 'kernel'),
  'the initramfs opens the slot': (dut, address) => tryUntil(dut, address, 'initramfs'),
  'the agent checks its health': (dut, address) => tryUntil(dut, address, 'trying'),
  'the slot is committed': (dut, address) => tryUntil(dut, address, 'committed'),
}

async function installed(dut: Dut, address: string): Promise<void> {
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
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

async function tryUntil(dut: Dut, address: string, kind: 'firmware' | 'kernel' | 'initramfs' | 'trying' | 'committed') {
  await installed(dut, address)
  await dut.reboot()
  await dut.next([kind], { timeoutMs: BOOT_MS })
}

for (const [phase, reach] of Object.entries(PHASES)) {
  const pause = Math.floor(random() * 900)
  hil(`power cut when ${phase}, and ${pause} ms (seed ${seed})`, async ({ dut, kit, server }) => {
    const { path, release } = kit.bundle('next')
    const address = server.offer('/next.bundle', { from: path })
    await reach(dut, address)
    await sleep(pause)
    await dut.powerCut()

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
    // What was cut can be done again, and succeeds.
    expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'b', release })
  })
}
