import { makeBlock, readBlock } from './grub-block.ts'
import { slotOf } from './grub-env.ts'
import type { Slot } from './state.ts'

/**
 * `/data/bistable/committed`: which slot was committed last, for the day when the boot state partition is lost as a
 * whole. GRUB reads it then, and only then; `bistable repair` believes it. A GRUB environment block with `bs_committed`.
 */
export const COMMITTED_NOTE = 'committed'

export function encodeNote(slot: Slot): Uint8Array {
  return makeBlock([['bs_committed', slot]])
}

/** Undefined for anything that GRUB would not read as a slot. */
export function decodeNote(bytes: Uint8Array): Slot | undefined {
  return slotOf(readBlock(bytes)?.get('bs_committed'))
}
