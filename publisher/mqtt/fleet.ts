import { humanBytes } from '../../base/bytes.ts'
import type { LinkReport, ProgressReport, StateReport } from '../../broker/messages.ts'

/** What the devices said, as far as anybody needs it now: one entry for each, bounded. Pure but for its memory. */

export interface DeviceEntry {
  readonly device: string
  readonly online: boolean
  /** Milliseconds since 1970, of the last word. */
  readonly heard: number
  readonly state: StateReport | undefined
  readonly progress: ProgressReport | undefined
}

const BAR = 12
/** More devices than this are served, but not kept: those not heard of for longest are forgotten. */
const MAX_DEVICES = 20_000

export type Report =
  | { readonly leaf: 'link'; readonly report: LinkReport }
  | { readonly leaf: 'state'; readonly report: StateReport }
  | { readonly leaf: 'progress'; readonly report: ProgressReport }

export class Fleet {
  readonly #devices = new Map<string, DeviceEntry>()
  #online = 0

  /** Devices that said they are there, and not that they are gone. */
  get online(): number {
    return this.#online
  }
  get size(): number {
    return this.#devices.size
  }

  /** Those heard of last come first; at most `most`. */
  newest(most: number): DeviceEntry[] {
    return [...this.#devices.values()].slice(-most).reverse()
  }

  counts(): { readonly online: number; readonly states: ReadonlyMap<string, number> } {
    const states = new Map<string, number>()
    let online = 0
    for (const entry of this.#devices.values()) {
      if (entry.online) online++
      const name = entry.state?.state ?? 'unknown'
      states.set(name, (states.get(name) ?? 0) + 1)
    }
    return { online, states }
  }

  /** @returns true when it says something new that is worth keeping: progress never is */
  hear(device: string, said: Report, now: number): boolean {
    const before = this.#devices.get(device)
    const entry = before ?? { device, online: false, heard: now, state: undefined, progress: undefined }
    this.#devices.delete(device)
    const after = { ...changed(entry, said), heard: now }
    this.#devices.set(device, after)
    this.#online += Number(after.online) - Number(before?.online ?? false)
    const [oldest] = this.#devices.keys()
    if (this.#devices.size > MAX_DEVICES && oldest !== undefined) {
      this.#online -= Number(this.#devices.get(oldest)?.online ?? false)
      this.#devices.delete(oldest)
    }
    if (said.leaf === 'progress') return false
    if (said.leaf === 'link') return before?.online !== said.report.online
    return JSON.stringify(before?.state) !== JSON.stringify(said.report)
  }
}

function changed(entry: DeviceEntry, said: Report): DeviceEntry {
  if (said.leaf === 'link') return { ...entry, online: said.report.online }
  if (said.leaf === 'progress') return { ...entry, progress: said.report }
  const moving = ['downloading', 'verified'].includes(said.report.state)
  return { ...entry, state: said.report, progress: moving ? entry.progress : undefined }
}

/** Of bundles: pieces and bytes sent since the start, and devices that wait for some. */
export interface Sending {
  readonly pieces: number
  readonly bytes: number
  readonly waiting: number
}

/** In the sums: what wants a person's eye stands first, where a narrow terminal does not cut it off. */
const FIRST = ['fallen-back', 'trying', 'downloading', 'verified', 'armed']
/** What stands beside a device's name: link, heard, and a state with its bar. */
const REST_WIDTH = 55
/** Of a device's name and of what it runs, at most. */
const NAME_WIDTH = 33
const RUNNING_WIDTH = 28

/**
 * The table for people: one line for each device heard of last, and a line of sums. What a device is at stands before what
 * it runs, and names are shortened in their middle, so that 80 columns are enough. Names and messages come from devices;
 * the terminal's guard makes them harmless. Pure.
 * @param now milliseconds since 1970
 * @param most rows at most
 * @param width columns
 */
export function fleetTable(fleet: Fleet, now: number, most: number, sending?: Sending, width = 120): string[] {
  const { online, states } = fleet.counts()
  const rank = (name: string) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length)
  const sums = [...states].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1)).map(([name, n]) => `${n} ${name}`)
  const lines = [`devices ${fleet.size}, ${online} online${sums.length === 0 ? '' : `: ${sums.join(', ')}`}`]
  if (sending !== undefined && sending.pieces + sending.waiting > 0)
    lines.push(
      `sent ${humanBytes(sending.bytes)} in ${sending.pieces} pieces, ${sending.waiting} devices wait for more`,
    )
  const shown = fleet.newest(most)
  if (shown.length > 0) {
    const widest = (texts: readonly string[]) => texts.reduce((most, text) => Math.max(most, text.length), 0)
    const at = shown.map(doing)
    const names = Math.min(
      NAME_WIDTH,
      Math.max(12, width - REST_WIDTH),
      Math.max(6, widest(shown.map(({ device }) => device))),
    )
    const doings = Math.max(5, widest(at))
    const line = (name: string, link: string, heard: string, does: string, runs: string) =>
      `${shortened(name, names).padEnd(names)} ${link.padEnd(4)} ${heard.padStart(7)}  ${does.padEnd(doings)}  ${runs}`
    lines.push(line('device', 'link', 'heard', 'state', 'runs').trimEnd())
    for (const [i, { device, online: up, heard, state }] of shown.entries()) {
      const runs =
        state === undefined ? '' : `${state.running.slot} ${state.running.release} ${state.running.version ?? ''}`
      const row = line(device, up ? 'up' : 'down', since(now - heard), at[i] ?? '', shortened(runs, RUNNING_WIDTH))
      lines.push(row.trimEnd())
    }
  }
  if (fleet.size > most) lines.push(`… and ${fleet.size - most} more`)
  return lines
}

/** What a device is at, and why its last step failed. */
function doing({ state, progress }: DeviceEntry): string {
  const part = progress === undefined || progress.total === 0 ? undefined : progress.done / progress.total
  const moves = part === undefined ? '' : ` ${progress?.phase} ${bar(Math.min(1, part))}`
  const { outcome } = state ?? {}
  const failed = outcome?.ok === false ? `  ${outcome.code ?? 'failed'}` : ''
  return `${state?.state ?? ''}${moves}${failed}`
}

/** The end of a name tells one device from another as often as its head does. */
function shortened(text: string, most: number): string {
  if (text.length <= most) return text
  const tail = Math.floor((most - 1) / 3)
  return `${text.slice(0, most - 1 - tail)}…${text.slice(text.length - tail)}`
}

/** As on the devices' own terminals. */
function bar(part: number): string {
  const full = Math.floor(part * BAR)
  return `[${'#'.repeat(full)}${'.'.repeat(BAR - full)}] ${Math.floor(part * 100)} %`
}

function since(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000))
  return seconds < 120
    ? `${seconds} s`
    : seconds < 7200
      ? `${Math.floor(seconds / 60)} min`
      : `${Math.floor(seconds / 3600)} h`
}
