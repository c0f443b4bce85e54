import { decodeWord, encodeWord } from './grub-env.ts'
import { type BootState, SLOTS, type Slot } from './state.ts'

/**
 * `autoboot.txt` of a Raspberry Pi. Pure. The firmware reads `boot_partition` of the section that holds: `[all]`, or
 * `[tryboot]` once after a reboot with the tryboot flag, when `tryboot_a_b=1`. The rest of our state is in a comment.
 */

export interface Autoboot {
  readonly state: BootState
  /** The reboot into the trial was asked for: the firmware has used the one try up, or is about to. */
  readonly underWay: boolean
}

/** The firmware reads no more of it than this. */
export const AUTOBOOT_BYTES = 512

export type BootPartitions = Readonly<Record<Slot, number>>

/** Always the same length, so that a change is one sector overwritten in place. */
export function encodeAutoboot({ state, underWay }: Autoboot, partitions: BootPartitions): Uint8Array {
  const lines = [
    `# bistable ${encodeWord(state)}${underWay ? ' under-way' : ''}`,
    '[all]',
    'tryboot_a_b=1',
    `boot_partition=${partitions[state.primary]}`,
    // Without a trial the flag, whoever sets it, leads to the committed slot.
    '[tryboot]',
    `boot_partition=${partitions[state.trial ?? state.primary]}`,
    '',
  ]
  return new Uint8Array(Buffer.from(lines.join('\n').padEnd(AUTOBOOT_BYTES, '\n'), 'latin1'))
}

/** Undefined when the firmware would start no slot of ours. What it would start counts, not what the comment says. */
export function decodeAutoboot(bytes: Uint8Array, partitions: BootPartitions): Autoboot | undefined {
  const text = Buffer.from(bytes.subarray(0, AUTOBOOT_BYTES)).toString('latin1')
  const number = (section: string): number | undefined => {
    let here = 'all'
    let found: number | undefined
    for (const line of text.split('\n')) {
      here = /^\[([a-z0-9_=]+)\]\s*$/.exec(line)?.[1] ?? here
      const value = /^boot_partition=(\d{1,3})\s*$/.exec(line)?.[1]
      if (here === section && value !== undefined) found = Number(value)
    }
    return found
  }
  const slotAt = (wanted: number | undefined) => SLOTS.find((slot) => partitions[slot] === wanted)
  const primary = slotAt(number('all'))
  if (primary === undefined) return undefined
  const [, word = '', mark] = /^# bistable (\S+)( under-way)?$/m.exec(text) ?? []
  const said = decodeWord(word)
  const same = said !== undefined && said.primary === primary
  const tried = slotAt(number('tryboot'))
  const trial = same && said.trial !== undefined && said.trial === tried ? tried : undefined
  if (trial !== undefined && same) return { state: said, underWay: mark !== undefined }
  const generation = said?.generation ?? 0
  const spare = same && said.trial === undefined && said.spare
  return { state: { generation, primary, trial: undefined, left: 0, spare }, underWay: false }
}
