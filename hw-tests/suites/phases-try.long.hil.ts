import type { BootEvent } from '../harness/boot-states.ts'
import type { Dut } from '../harness/dut.ts'
import { hil } from '../harness/hil.ts'
import { BOOT_MS, cutsPower } from './phases.ts'

// The power is cut in each phase of the first try of a release. Those of the install: phases.long.hil.ts.

hil.override('begin', 'armed')

async function tryUntil(dut: Dut, ...kinds: readonly BootEvent['kind'][]): Promise<void> {
  await dut.reboot()
  await dut.next(kinds, { timeoutMs: BOOT_MS })
}

cutsPower({
  'the device is going down': (dut) => dut.reboot(),
  // Some firmware says nothing: then it has just been counted.
  'the boot loader counts the try': (dut) => tryUntil(dut, 'firmware', 'boot'),
  'the kernel starts': (dut) => tryUntil(dut, 'kernel'),
  'the initramfs opens the slot': (dut) => tryUntil(dut, 'initramfs'),
  'the agent checks its health': (dut) => tryUntil(dut, 'trying'),
  'the slot is committed': (dut) => tryUntil(dut, 'committed'),
})
