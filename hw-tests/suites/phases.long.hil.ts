import type { Dut } from '../harness/dut.ts'
import { DutError } from '../harness/lab-error.ts'
import { BOOT_MS, cutsPower } from './phases.ts'

// The power is cut in each phase of an install. Those of a try: phases-try.long.hil.ts.

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
  await dut.console.waitForText(reached, `${phase}`, from, {
    timeoutMs: BOOT_MS,
    ...(dut.signal && { signal: dut.signal }),
  })
}

cutsPower({
  'what is there is being looked at': (dut, address) =>
    installUntil(dut, address, /looking at what is there rootfs [2-8]0%/),
  'the slot is being written': (dut, address) => installUntil(dut, address, /writing rootfs [2-8]0%/),
  'the slot is being read back': (dut, address) => installUntil(dut, address, /reading back rootfs [2-8]0%/),
  'the slot has been verified': (dut, address) => installUntil(dut, address, /state=verified/),
  'the slot has just been armed': (dut, address) => installUntil(dut, address, /state=armed/),
})
