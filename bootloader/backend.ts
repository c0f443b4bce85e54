import type { BootReason } from './reason.ts'
import type { BootState, Slot } from './state.ts'

/**
 * What the agent asks of a bootloader. `machine.ts` decides every state; a backend only keeps it where its bootloader
 * reads it. One file per backend; the agent chooses by what the device's settings or the partition itself say.
 */
export interface BootBackend {
  /** What this is and where it keeps the state, for status and for people. Asks nothing of the disk. */
  describe(): BackendFacts
  /** Fails only when nothing can be read at all (BOOT_STATE_READ); damage is part of the answer. */
  read(): Promise<BackendReading>
  /**
   * Stores `state`, so that the next boot follows it: one change that a power cut leaves either done or not done,
   * flushed and read back. Throws BOOT_STATE_INVALID when its generation is not above the stored one,
   * BOOT_STATE_WRITE or BOOT_STATE_NOT_STORED when the state from before (or, with a lost answer, the new one) counts.
   */
  write(state: BootState): Promise<void>
  /** What bootloader and initramfs left behind since the agent last came up; a hint, NO_REASON where nothing keeps one. */
  reason(): Promise<BootReason>
  /** The agent came up in slot `up`: no starts, no failure. Writes only when that changes something. */
  clearReason(up: Slot): Promise<void>
  /**
   * Of a bootloader that has to be told at the reboot: the argument for it, undefined when there is none. Called just before
   * the reboot, and the try counts as used from here on.
   */
  rebootArgument?(): Promise<string | undefined>
  close(): Promise<void>
}

export interface BackendReading {
  /** The state that counts; undefined when there is none that can be read. */
  readonly state: BootState | undefined
  /** A state counts, but something beside it is damaged: writing any state heals it. */
  readonly torn: boolean
}

export interface BackendFacts {
  /** Short and stable: "grub", "uboot". */
  readonly name: string
  /** One phrase for people: "GRUB environment blocks on /dev/vda2". */
  readonly place: string
  /** Most tries that the bootloader can count, 1 .. 9. */
  readonly maxTries: number
}
