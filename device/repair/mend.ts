import { isBistableError } from '../../base/errors.ts'
import { renew } from '../../bootloader/machine.ts'
import type { Slot } from '../../bootloader/state.ts'
import type { BootPort } from '../agent/ports.ts'

/**
 * At every start: when the boot state cannot be used only because what stands around its copies is damaged, while a copy
 * is good, there is nothing to guess, and a device that nobody visits must not wait for a person. Never fails: what it
 * cannot mend is reported as before.
 */
export async function mendAround(boot: BootPort, up: Slot, say: (line: string) => void): Promise<void> {
  try {
    await boot.read()
  } catch (error) {
    if (!isBistableError(error, 'BOOT_STATE_LAYOUT')) return
    try {
      const repairer = await boot.repairer()
      try {
        const { state } = await repairer.survey()
        if (state === undefined) return
        const did = await repairer.restore(renew(state), up)
        say(`bistable: the boot state partition was damaged: ${did.join(', ')}`)
      } finally {
        await repairer.close()
      }
    } catch {
      // The reading that follows says what is wrong.
    }
  }
}
