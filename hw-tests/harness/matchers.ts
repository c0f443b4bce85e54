import { expect } from 'vitest'
import type { BootEvent } from './boot-states.ts'
import { Dut } from './dut.ts'
import { judgeBoot, judgeFallBack, type WantedBoot, type WantedFallBack } from './judge.ts'
import { DutError } from './lab-error.ts'

/** Matchers that wait. A device that does something else fails the assertion; a broken lab stays a LabError. */

/** Long for an idle machine: several emulators may share a slow one. */
const BOOT_MS = 600_000

export const seconds = (count: number): number => count * 1000

interface HilMatchers<R> {
  /** The next time the boot loader hands over, it starts this slot in this way. */
  toBoot(want: WantedBoot & { readonly within?: number }): Promise<R>
  /** The agent comes up and says so, and the release in the slot it runs from is (or becomes) committed. */
  toRun(want: { readonly slot: 'a' | 'b'; readonly release: string; readonly within?: number }): Promise<R>
  /** The other slot is tried and given up, and the device is back in `to` by itself. */
  toFallBack(want: WantedFallBack & { readonly within?: number }): Promise<R>
}

declare module 'vitest' {
  // biome-ignore lint/suspicious/noExplicitAny: the parameter must be declared as vitest declares it
  interface Matchers<T = any> extends HilMatchers<T> {}
}

interface Result {
  readonly pass: boolean
  readonly message: () => string
}

const result = (wrong: string | undefined): Result => ({ pass: wrong === undefined, message: () => wrong ?? 'it did' })

function dutOf(received: unknown): Dut {
  if (!(received instanceof Dut)) throw new TypeError('expect(dut) wants the device under test')
  return received
}

/** A device's deviation becomes a failed assertion; everything else goes on as it is. */
async function asserted(act: () => Promise<string | undefined>): Promise<Result> {
  try {
    return result(await act())
  } catch (error) {
    if (error instanceof DutError) return result(error.message)
    throw error
  }
}

expect.extend({
  toBoot(received: unknown, { within = BOOT_MS, ...want }: WantedBoot & { readonly within?: number }) {
    const dut = dutOf(received)
    return asserted(async () => {
      const event = await dut.next(['boot'], { timeoutMs: within })
      return judgeBoot(event, want)
    })
  },

  toRun(received: unknown, want: { readonly slot: 'a' | 'b'; readonly release: string; readonly within?: number }) {
    const dut = dutOf(received)
    return asserted(async () => {
      const { fields, line } = await dut.next(['running', 'committed'], {
        timeoutMs: want.within ?? BOOT_MS,
        fatal: ['panic', 'boot', 'fell-back', 'refused', 'initramfs-failed', 'emergency'],
      })
      const same = fields['slot'] === want.slot && fields['release'] === want.release
      return same ? undefined : `slot ${want.slot} with release ${want.release} was wanted: ${line}`
    })
  },

  toFallBack(received: unknown, { within = BOOT_MS, ...want }: WantedFallBack & { readonly within?: number }) {
    const dut = dutOf(received)
    return asserted(async () => {
      const deadline = Date.now() + within
      const seen: BootEvent[] = []
      for (;;) {
        seen.push(await dut.next(['boot', 'fell-back', 'committed'], { timeoutMs: Math.max(1, deadline - Date.now()) }))
        const verdict = judgeFallBack(seen, want)
        if (verdict !== 'wait') return verdict.ok ? undefined : verdict.why
      }
    })
  },
})
