import type { BackendReading } from './backend.ts'
import type { BootCfg } from './boot-cfg.ts'
import { type BootState, otherSlot, SLOTS, type Slot } from './state.ts'

/**
 * The boot state as the names of systemd-boot's entries: `bistable-NUMBER-SLOT.conf` is a slot that may be booted for
 * good, `bistable-NUMBER-SLOT+LEFT-DONE.conf` one on trial. Rules of systemd-boot that this stands on (Automatic Boot
 * Assessment, the Boot Loader Specification): entries without tries left go behind all others, the rest are ordered by
 * name from the highest down, the first is booted, and `+LEFT` is counted down by renaming before it is.
 */

export interface Entry {
  readonly file: string
  /** The generation in which it was made; the highest one is booted. */
  readonly number: number
  readonly slot: Slot
  /** Undefined: it is not counted. */
  readonly left: number | undefined
}

const NAME = /^bistable-(\d{10})-([ab])(?:\+(\d{1,9})(?:-\d{1,9})?)?\.conf$/i

export function parseEntry(file: string): Entry | undefined {
  const match = NAME.exec(file)
  const slot = SLOTS.find((known) => known === match?.[2]?.toLowerCase())
  if (match === null || slot === undefined) return undefined
  return { file, number: Number(match[1]), slot, left: match[3] === undefined ? undefined : Number(match[3]) }
}

export function entryName(number: number, slot: Slot, left?: number): string {
  return `bistable-${String(number).padStart(10, '0')}-${slot}${left === undefined ? '' : `+${left}`}.conf`
}

/** Of each slot the newest entry; an older one beside it is what a cut left behind. */
export function newestEntries(entries: readonly Entry[]): Partial<Record<Slot, Entry>> {
  const found: Partial<Record<Slot, Entry>> = {}
  for (const entry of entries) if ((found[entry.slot]?.number ?? -1) < entry.number) found[entry.slot] = entry
  return found
}

/** What the names say; `torn` when something is left over. */
export function stateOfEntries(entries: readonly Entry[]): BackendReading {
  const newest = newestEntries(entries)
  const leftOver = entries.some((entry) => newest[entry.slot] !== entry)
  const good = SLOTS.flatMap((slot) => newest[slot] ?? []).filter((entry) => entry.left === undefined)
  const [first] = good.sort((a, b) => b.number - a.number)
  if (first === undefined) return { state: undefined, torn: false }
  const other = newest[otherSlot(first.slot)]
  const trial = other?.left === undefined ? undefined : other
  const state: BootState = {
    generation: Math.max(...entries.map((entry) => entry.number)),
    primary: first.slot,
    trial: trial?.slot,
    left: Math.min(trial?.left ?? 0, 9),
    spare: other !== undefined && trial === undefined,
  }
  return { state, torn: leftOver }
}

/** The text of an entry. `boot`: whether this entry is the one that tries the release. */
export function entryText(slot: Slot, cfg: BootCfg, boot: 'try' | 'committed'): string {
  const words = `bistable.slot=${slot} bistable.release=${cfg.release} bistable.boot=${boot} bistable.left=0 bistable.why=ok`
  return [
    `title bistable ${cfg.release} in slot ${slot}`,
    `version ${cfg.release}`,
    `linux /bistable/${slot}/vmlinuz`,
    `initrd /bistable/${slot}/initrd.img`,
    `options panic=5 ${cfg.args} ${words}`,
    '',
  ].join('\n')
}
