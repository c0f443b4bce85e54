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

/**
 * The table for people: one line for each device heard of last, and a line of sums. Names and messages come from
 * devices; the terminal's guard makes them harmless. Pure.
 * @param now milliseconds since 1970
 * @param most rows at most
 */
export function fleetTable(fleet: Fleet, now: number, most: number, sending?: Sending): string[] {
  const { online, states } = fleet.counts()
  const sums = [...states].sort().map(([name, n]) => `${n} ${name}`)
  const lines = [`devices ${fleet.size}, ${online} online${sums.length === 0 ? '' : `: ${sums.join(', ')}`}`]
  if (sending !== undefined && sending.pieces + sending.waiting > 0)
    lines.push(
      `sent ${humanBytes(sending.bytes)} in ${sending.pieces} pieces, ${sending.waiting} devices wait for more`,
    )
  if (fleet.size > 0)
    lines.push(`${'device'.padEnd(33)} ${'link'.padEnd(4)} ${'heard'.padStart(7)}  ${'running'.padEnd(18)} state`)
  for (const entry of fleet.newest(most)) lines.push(row(entry, now))
  if (fleet.size > most) lines.push(`… and ${fleet.size - most} more`)
  return lines
}

function row({ device, online, heard, state, progress }: DeviceEntry, now: number): string {
  const running =
    state === undefined ? '' : `${state.running.slot} ${state.running.release} ${state.running.version ?? ''}`
  const part = progress === undefined || progress.total === 0 ? undefined : progress.done / progress.total
  const doing = part === undefined ? '' : ` ${progress?.phase} ${bar(Math.min(1, part))}`
  const { outcome } = state ?? {}
  const failed = outcome?.ok === false ? `  ${outcome.code ?? 'failed'}` : ''
  const said = `${state?.state ?? ''}${doing}${failed}`
  return `${device.padEnd(33)} ${(online ? 'up' : 'down').padEnd(4)} ${since(now - heard).padStart(7)}  ${running.padEnd(18)} ${said}`
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
