/** The boot state: what the bootloader decides from, before the kernel starts. Pure; codecs and scripts stand beside it. */

export type Slot = 'a' | 'b'
export const SLOTS = ['a', 'b'] as const satisfies readonly Slot[]
export const otherSlot = (slot: Slot): Slot => (slot === 'a' ? 'b' : 'a')

export const DEFAULT_TRIES = 3
export const MAX_TRIES = 9

export interface BootState {
  /** Rises with every write of the agent; the bootloader's own write lowers `left` instead (GRUB script has no arithmetic). */
  readonly generation: number
  /** The last committed slot: boots when nothing is on trial, and when every try is spent. */
  readonly primary: Slot
  /** The slot on trial, if any; never equal to `primary`. */
  readonly trial: Slot | undefined
  /** Tries left for `trial`: 0 .. 9. 0 with a trial set: it fell back. */
  readonly left: number
  /**
   * True when the slot that is neither primary nor on trial holds a complete release that was once committed and is not
   * below the security floor: it may be booted.
   */
  readonly spare: boolean
}
