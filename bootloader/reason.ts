import { makeBlock, readBlock } from './grub-block.ts'
import { slotOf } from './grub-env.ts'
import { MAX_STARTS, NO_STARTS, type Starts } from './machine.ts'
import { SLOTS, type Slot } from './state.ts'

/**
 * `reason.env`: how often each slot was started without the agent coming up, and why the last start failed.
 *
 * GRUB adds a point to a slot before it starts it, the initramfs writes what went wrong (and one more point), the agent
 * clears both when it comes up. All of it is a hint: a lost record means "no starts, no reason".
 */

export interface BootFailure {
  readonly slot: Slot
  /** Where in the initramfs: "find", "verity", "floor", … */
  readonly stage: string
  readonly text: string
}

/** What the bootloader and the initramfs left behind since the agent last came up. */
export interface BootReason {
  readonly starts: Starts
  readonly failure: BootFailure | undefined
}

export const NO_REASON: BootReason = { starts: NO_STARTS, failure: undefined }

const STARTS = /^a(\d)b(\d)u([ab-])$/
/** "SLOT STAGE TEXT"; the initramfs replaces other characters by a space and cuts after 240. */
const FAILURE = /^([ab]) ([a-z-]{1,20}) ([ -[\]-~]{1,240})$/

export function encodeStarts({ a, b, up }: Starts): string {
  return `a${Math.min(a, MAX_STARTS)}b${Math.min(b, MAX_STARTS)}u${up ?? '-'}`
}

/** The 1024 bytes of `reason.env`; everything stands in the first 512. */
export function encodeReason({ starts, failure }: BootReason): Uint8Array {
  const word = encodeStarts(starts)
  const text = failure === undefined ? '' : `${failure.slot} ${failure.stage} ${failure.text}`
  if (failure !== undefined && !FAILURE.test(text)) throw new RangeError(`a boot failure cannot be ${text}`)
  return makeBlock([
    ['rs_head', word],
    ['rs_failure', text],
    ['rs_tail', word],
  ])
}

/** Reads what GRUB, the initramfs or `encodeReason` wrote; damaged parts read as nothing. */
export function decodeReason(bytes: Uint8Array): BootReason {
  const variables = readBlock(bytes)
  const word = variables?.get('rs_head')
  const match = word !== undefined && word === variables?.get('rs_tail') ? STARTS.exec(word) : null
  if (match === null) return NO_REASON
  const starts: Starts = { a: Number(match[1]), b: Number(match[2]), up: slotOf(match[3]) }
  const [, letter, stage, text] = FAILURE.exec(variables?.get('rs_failure') ?? '') ?? []
  const slot = SLOTS.find((s) => s === letter)
  if (slot === undefined || stage === undefined || text === undefined) return { starts, failure: undefined }
  return { starts, failure: { slot, stage, text } }
}
