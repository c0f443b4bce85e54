import type { Slot } from '../../bootloader/state.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { readNumber } from '../records/record.ts'

/** What the bootloader and the boot image say of this boot (docs/architecture.md, "Kernel command line"). */
export interface BootLine {
  readonly slot: Slot
  readonly release: ReleaseNumber
  readonly boot: 'committed' | 'try' | 'fallback' | 'menu'
  /** Tries left for the slot on trial, as the bootloader left them. */
  readonly left: number
  readonly why: string
  /** Security floor that the running release carries. */
  readonly floor: ReleaseNumber
}

/**
 * Reads /proc/cmdline.
 * @returns undefined when the system was not started from a slot
 */
export function parseBootLine(text: string): BootLine | undefined {
  const values = new Map<string, string>()
  for (const word of text.trim().split(/\s+/)) {
    const match = /^bistable\.([a-z]+)=(.*)$/.exec(word)
    // The last one wins, as for the kernel: grub.cfg appends its words behind those of the image.
    if (match?.[1] !== undefined && match[2] !== undefined) values.set(match[1], match[2])
  }
  const slot = values.get('slot')
  const boot = values.get('boot') ?? 'menu'
  const release = readNumber(values.get('release') ?? '')
  const floor = readNumber(values.get('floor') ?? '0.0') ?? { epoch: 0, counter: 0 }
  const left = /^[0-9]$/.test(values.get('left') ?? '') ? Number(values.get('left')) : 0
  if ((slot !== 'a' && slot !== 'b') || release === undefined) return undefined
  if (boot !== 'committed' && boot !== 'try' && boot !== 'fallback' && boot !== 'menu') return undefined
  const why = /^[a-z-]{1,32}$/.test(values.get('why') ?? '') ? (values.get('why') ?? 'ok') : 'ok'
  return { slot, release, boot, left, why, floor }
}
