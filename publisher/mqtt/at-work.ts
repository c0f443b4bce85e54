import type { Sha256 } from '../../base/bytes.ts'
import type { Costs } from './pace.ts'

/** What the schedule remembers of devices and bundles. */

export interface Asker {
  readonly bundle: Sha256
  readonly at: number
  /** Highest piece of its last request: below that it has asked for what it lacks. */
  readonly top: number
  readonly wants: Set<number>
  /** Number and time of the pieces that were sent while it asked for them, as long as its requests name them. */
  readonly served: Map<number, Sent>
}

export interface Sent {
  readonly number: number
  readonly at: number
}

export interface Waiting {
  /** First asked for. */
  readonly since: number
  readonly by: Set<string>
}

/** Devices that are waited for, by how far they have come. */
export interface Front {
  readonly at: number
  readonly tops: readonly { readonly device: string; readonly top: number }[]
}

export interface BundleState {
  /** Since when anybody is at work on it, when the last one came, and when somebody last asked. */
  readonly since: number
  joinedAt: number
  askedAt: number
  readonly waiting: Map<number, Waiting>
  readonly askers: Set<string>
  /** Devices that asked what the file is, and not yet for pieces; since when. */
  readonly coming: Map<string, number>
  readonly sent: Map<number, Sent>
  /** For pieces that were never sent, and for those that were. */
  readonly costs: readonly [Costs, Costs]
  fronts: [Front | undefined, Front | undefined]
  assessedAt: number
}
