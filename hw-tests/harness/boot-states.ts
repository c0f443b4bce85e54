/**
 * What a console line says about where the device is: a pure reducer, fed line by line, so that recorded transcripts
 * test it. Lines of ours carry the prefixes `bistable:` (GRUB and agent) and `bistable-init:` (initramfs).
 */

export type BootState =
  | 'off'
  | 'firmware'
  | 'bootloader'
  | 'kernel'
  | 'initramfs'
  | 'userspace'
  | 'panic'
  | 'initramfs-failed'
  | 'emergency'

export interface BootEvent {
  readonly kind:
    | 'firmware'
    | 'boot'
    | 'kernel'
    | 'initramfs'
    | 'initramfs-failed'
    | 'userspace'
    | 'panic'
    | 'oops'
    | 'watchdog'
    | 'filesystem-error'
    | 'emergency'
    | 'trying'
    | 'committed'
    | 'fell-back'
    | 'armed'
    | 'running'
    | 'refused'
    | 'agent'
  /** `key=value` words of a line of ours. */
  readonly fields: Readonly<Record<string, string>>
  readonly line: string
}

interface Rule {
  readonly pattern: RegExp
  readonly kind: BootEvent['kind']
  readonly state?: BootState
}

// First match wins. Patterns look for text anywhere in the line: kernel messages land in the middle of others.
const RULES: readonly Rule[] = [
  { pattern: /bistable: boot slot=/, kind: 'boot', state: 'bootloader' },
  { pattern: /bistable-init: fail\b/, kind: 'initramfs-failed', state: 'initramfs-failed' },
  { pattern: /bistable-init: /, kind: 'initramfs', state: 'initramfs' },
  { pattern: /bistable: committed slot=/, kind: 'committed', state: 'userspace' },
  { pattern: /bistable: fell back to slot=/, kind: 'fell-back', state: 'userspace' },
  { pattern: /bistable: state=trying/, kind: 'trying', state: 'userspace' },
  { pattern: /bistable: state=armed/, kind: 'armed', state: 'userspace' },
  { pattern: /bistable: refused slot=/, kind: 'refused', state: 'userspace' },
  { pattern: /bistable: running slot=/, kind: 'running', state: 'userspace' },
  { pattern: /bistable: /, kind: 'agent' },
  { pattern: /Kernel panic - not syncing/, kind: 'panic', state: 'panic' },
  {
    pattern:
      /watchdog: BUG: (?:soft|hard)|hard LOCKUP|reset by watchdog|Reset (?:Status|cause): .*(?:WDT|WDOG|watchdog)/i,
    kind: 'watchdog',
  },
  {
    // A program's "DEBUG: " is none. Behind an architecture's own words stands the number of the crash: "...: 0000 [#1] SMP".
    pattern:
      /\b(?:Oops|BUG|KASAN): |------------\[ cut here \]|[Uu]nable to handle (?:kernel|page fault)|: [0-9a-f]{4,16} \[#\d+\]/,
    kind: 'oops',
  },
  {
    pattern: /(?:EXT4-fs error|SQUASHFS error|I\/O error, dev|device-mapper: verity: .*corrupt)/,
    kind: 'filesystem-error',
  },
  {
    // systemd's, Debian's initramfs, dracut's.
    pattern:
      /You are in emergency mode|Give root password for maintenance|Dropping to a shell!|Entering emergency mode/,
    kind: 'emergency',
    state: 'emergency',
  },
  { pattern: /BdsDxe: (?:starting|loading)|^SeaBIOS|U-Boot 20\d\d/, kind: 'firmware', state: 'firmware' },
  { pattern: /Linux version \d/, kind: 'kernel', state: 'kernel' },
  { pattern: /(?:^|\s)\S+ login: $|systemd\[1\]: (?:Detected|systemd )/, kind: 'userspace', state: 'userspace' },
]

/** What no healthy device says. */
export const TROUBLES = [
  'panic',
  'oops',
  'watchdog',
  'emergency',
  'filesystem-error',
] as const satisfies readonly BootEvent['kind'][]
export type Trouble = (typeof TROUBLES)[number]

/**
 * Whether an event is a trouble that was not expected. Where a stick was plugged in, errors of what may be one are not the device's:
 * it may have been pulled.
 */
export function isTrouble({ kind, line }: BootEvent, allowed: readonly Trouble[], stick = false): boolean {
  const trouble = TROUBLES.find((one) => one === kind)
  if (trouble === undefined || allowed.includes(trouble)) return false
  return trouble !== 'filesystem-error' || !stick || !/\b(?:vd[b-z]|sd[a-z])\d*\b/.test(line)
}

/** Reads one console line (without its line end): the event it stands for, or undefined. */
export function readLine(line: string): BootEvent | undefined {
  for (const { pattern, kind } of RULES) {
    if (!pattern.test(line)) continue
    return { kind, line, fields: fieldsOf(line) }
  }
  return undefined
}

/** The state after an event. */
export function nextState(state: BootState, event: BootEvent): BootState {
  const rule = RULES.find((r) => r.kind === event.kind)
  return rule?.state ?? state
}

function fieldsOf(line: string): Record<string, string> {
  const fields: Record<string, string> = {}
  for (const match of line.matchAll(/\b([a-z][a-z-]{0,31})=(\S{1,256})/g)) {
    const [, key, value] = match
    if (key !== undefined && value !== undefined) fields[key] = value
  }
  return fields
}
