import { clearReason, openWhole, readReason } from './bootstate.ts'
import { type BootReason, NO_REASON } from './reason.ts'
import type { Slot } from './state.ts'

/**
 * Where the initramfs leaves its reasons on a device whose boot state is elsewhere: the partition `bootstate`, of which
 * nothing else is used then. Only a hint: a partition that is not there has no reasons.
 */
export interface ReasonPlace {
  reason(): Promise<BootReason>
  clearReason(up: Slot): Promise<void>
}

export function reasonPlace(find: () => Promise<string>): ReasonPlace {
  const using = async <T>(work: (device: Awaited<ReturnType<typeof openWhole>>) => Promise<T>, without: T) => {
    try {
      const device = await openWhole(await find())
      try {
        return await work(device)
      } finally {
        await device.close()
      }
    } catch {
      return without
    }
  }
  return {
    reason: () => using(readReason, NO_REASON),
    clearReason: (up) => using((device) => clearReason(device, up), undefined),
  }
}
