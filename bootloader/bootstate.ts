import type { Starts } from './machine.ts'
import type { RawDevice } from './raw-device.ts'
import type { BootState, Slot } from './state.ts'

export interface BootStateReading {
  /** The state that counts; undefined when no copy can be read. */
  readonly state: BootState | undefined
  /** Which copy it came from. */
  readonly source: 0 | 1 | undefined
  readonly copies: readonly [BootCopy, BootCopy]
}
export type BootCopy =
  | { readonly kind: 'valid'; readonly state: BootState }
  | { readonly kind: 'torn'; readonly detail: string }

/** What the bootloader and the initramfs left behind since the agent last came up. */
export interface BootReason {
  readonly starts: Starts
  readonly failure: { readonly slot: Slot; readonly stage: string; readonly text: string } | undefined
}

export interface BootStateDevice {
  read(): Promise<BootStateReading>
  write(state: BootState): Promise<void>
  reason(): Promise<BootReason>
  /** Says that the agent came up in slot `up`: no starts, no failure. Writes only when something changes. */
  clearReason(up: Slot): Promise<void>
  close(): Promise<void>
}

export function bootstateImage(_state: BootState): Promise<Uint8Array> {
  throw new Error('not yet')
}
export function openBootState(_path: string): Promise<BootStateDevice> {
  throw new Error('not yet')
}
export function bootStateOn(_device: RawDevice): BootStateDevice {
  throw new Error('not yet')
}
