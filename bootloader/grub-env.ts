import { BLOCK_BYTES, makeBlock, readBlock } from './grub-block.ts'
import { checkState } from './machine.ts'
import { type BootState, SLOTS, type Slot } from './state.ts'

/**
 * One copy of the boot state as a GRUB environment block.
 *
 * The whole state is one fixed-width word, `GENERATION.PRIMARY.TRIAL.LEFT.SPARE`, and stands in the block twice:
 * `bs_head` and `bs_tail`. GRUB script cannot checksum, but it can compare two words: a copy counts only when they are
 * equal, so a torn or half-lost write never does. Everything stands in the first 512 bytes; the rest is `#` for ever.
 */

export type BootCopy =
  | { readonly kind: 'valid'; readonly state: BootState }
  | { readonly kind: 'torn'; readonly detail: string }

/** Bytes that carry the state; a copy is changed by one write of this size. */
export const SECTOR_BYTES = 512

const WORD = /^(\d{10})\.([ab])\.([ab-])\.(\d)\.([01])$/

export function encodeWord(state: BootState): string {
  const { generation, primary, trial, left, spare } = checkState(state)
  return `${String(generation).padStart(10, '0')}.${primary}.${trial ?? '-'}.${left}.${spare ? 1 : 0}`
}

/** The state that `word` stands for; undefined unless it is exactly one that `encodeWord` gives. */
export function decodeWord(word: string): BootState | undefined {
  const match = WORD.exec(word)
  if (match === null) return undefined
  const [, digits, first, second, left, spare] = match
  const state: BootState = {
    generation: Number(digits),
    primary: first === 'b' ? 'b' : 'a',
    trial: slotOf(second),
    left: Number(left),
    spare: spare === '1',
  }
  const reachable = state.trial !== state.primary && (state.trial === undefined ? state.left === 0 : !state.spare)
  return reachable ? state : undefined
}

export function slotOf(text: string | undefined): Slot | undefined {
  return SLOTS.find((slot) => slot === text)
}

/** The 1024 bytes of a copy. */
export function encodeCopy(state: BootState): Uint8Array {
  const word = encodeWord(state)
  return makeBlock([
    ['bs_head', word],
    ['bs_tail', word],
  ])
}

/** Reads the 1024 bytes of a copy as `grub.cfg` does. */
export function decodeCopy(bytes: Uint8Array): BootCopy {
  const torn = (detail: string): BootCopy => ({ kind: 'torn', detail })
  if (bytes.length !== BLOCK_BYTES) return torn(`${bytes.length} bytes instead of ${BLOCK_BYTES}`)
  const variables = readBlock(bytes)
  if (variables === undefined) return torn('no GRUB environment block')
  const head = variables.get('bs_head')
  const tail = variables.get('bs_tail')
  if (head === undefined || tail === undefined) return torn('bs_head or bs_tail is missing')
  if (head !== tail) return torn(`bs_head is ${printable(head)}, bs_tail is ${printable(tail)}`)
  const state = decodeWord(head)
  return state === undefined ? torn(`${printable(head)} is not a boot state`) : { kind: 'valid', state }
}

function printable(text: string): string {
  return JSON.stringify(text.slice(0, 40))
}

/**
 * Which copy counts: the valid one with the higher generation; of equal generations the one with fewer tries left,
 * because that is the one that the bootloader wrote last; of equal copies the first.
 */
export function chooseCopy(copies: readonly [BootCopy, BootCopy]): 0 | 1 | undefined {
  const [first, second] = copies
  if (first.kind === 'torn') return second.kind === 'torn' ? undefined : 1
  if (second.kind === 'torn') return 0
  const newer =
    second.state.generation !== first.state.generation
      ? second.state.generation > first.state.generation
      : second.state.left < first.state.left
  return newer ? 1 : 0
}
