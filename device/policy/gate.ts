import type { Policy } from '../../bundle/agent-policy.ts'
import { fits, type Power } from './surroundings.ts'
import { type Offset, parseWindow, windowState } from './windows.ts'

/** Whether a policy lets the device take its next step by itself, and if not, why and until when. Pure. */

export type PolicyStep = 'check' | 'download' | 'apply'

export interface GateFacts {
  /** The device's clock, milliseconds since 1970. */
  readonly wall: number
  /** False while the clock is known to be wrong: not set from the network, and before what is known to have passed. */
  readonly clockPlausible: boolean
  readonly offset: Offset
  /** Interfaces with a default route. */
  readonly links: readonly string[]
  readonly power: Power
  /** This device's place in a spread, 0 <= value < 1. */
  readonly place: number
  /** Since when this step has been wanted. */
  readonly wantedSince: number
}

export interface Wait {
  readonly code: 'POLICY_WINDOW' | 'POLICY_CLOCK' | 'POLICY_METERED' | 'POLICY_POWER' | 'POLICY_SPREAD'
  readonly message: string
  /** Milliseconds since 1970; undefined when no clock decides it. */
  readonly until: number | undefined
}

/** The first reason to wait, or undefined: go on. */
export function gate(step: PolicyStep, policy: Policy, facts: GateFacts): Wait | undefined {
  const own = policy[step]
  const windows = own.windows.map(parseWindow).filter((window) => window !== undefined)
  let opened = Number.NEGATIVE_INFINITY
  let closes = Number.POSITIVE_INFINITY
  if (windows.length > 0) {
    if (!facts.clockPlausible) {
      // Asking does no harm, and may be the way to learn what time it is.
      if (step !== 'check')
        return { code: 'POLICY_CLOCK', message: `${step} waits: the clock is not set`, until: undefined }
    } else {
      const { open, since, until } = windowState(windows, facts.wall, facts.offset)
      if (!open) {
        const next = since === undefined ? '' : `; the next opens at ${new Date(since).toISOString()}`
        return { code: 'POLICY_WINDOW', message: `${step} waits for its window${next}`, until: since }
      }
      opened = since ?? opened
      closes = until ?? closes
    }
  }
  if ('metered' in own && own.metered === 'refuse') {
    const link = facts.links.find((name) => policy.meteredLinks.some((pattern) => fits(name, pattern)))
    // The best route decides: a modem kept as a reserve is not what bytes go through.
    if (link !== undefined && link === facts.links[0])
      return { code: 'POLICY_METERED', message: `${step} waits: the link ${link} is metered`, until: undefined }
  }
  if ('mains' in own) {
    const { mains, batteryPercent } = facts.power
    if (own.mains && !mains)
      return { code: 'POLICY_POWER', message: `${step} waits: the device runs on its battery`, until: undefined }
    if (!mains && batteryPercent !== undefined && batteryPercent < own.minBatteryPercent) {
      const message = `${step} waits: the battery is at ${batteryPercent} %, ${own.minBatteryPercent} % are wanted`
      return { code: 'POLICY_POWER', message, until: undefined }
    }
  }
  if ('spreadSeconds' in own && own.spreadSeconds > 0) {
    const from = Math.max(opened, facts.wantedSince)
    // The last one still gets half of what the window leaves.
    const span = Math.min(own.spreadSeconds * 1000, (closes - from) / 2)
    const at = from + facts.place * span
    if (facts.wall < at) {
      const message = `${step} waits for its place in the fleet, ${new Date(at).toISOString()}`
      return { code: 'POLICY_SPREAD', message, until: at }
    }
  }
  return undefined
}
