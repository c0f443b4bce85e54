/** Who has which board, as plain data and decisions. Pure: the clock and the liveness of processes come in. */

/** The process that took a lease on this machine, so that a dead one holds nothing. */
export interface Holder {
  /** /proc/sys/kernel/random/boot_id: a process number says nothing after a reboot. */
  readonly bootId: string
  /** The pid namespace that the number counts in (/proc/self/ns/pid): a container's numbers are its own. */
  readonly pidSpace: string
  readonly pid: number
  /** Start time in clock ticks since boot (field 22 of /proc/PID/stat): numbers are used again. */
  readonly started: string
}

export interface Lease {
  readonly place: string
  /** "anna@lab-host: npm run hil" */
  readonly owner: string
  /** Known to the owner only: who has it may renew and release. */
  readonly token: string
  /** Milliseconds since 1970. */
  readonly since: number
  readonly expires: number
  readonly holder?: Holder
}

export interface Wish {
  readonly place: string
  readonly owner: string
  readonly token: string
  /** Milliseconds that the lease lasts without a heartbeat. */
  readonly ttlMs: number
  readonly holder?: Holder
  /** Take it even from a living owner, who then stops. */
  readonly steal?: boolean
}

export type Leases = Readonly<Record<string, Lease>>

export type Answer =
  | { readonly granted: true; readonly lease: Lease; readonly leases: Leases; readonly instead?: Lease }
  | { readonly granted: false; readonly held: Lease | undefined; readonly leases: Leases }

/** Grants a place that nobody has: never held, run out, or held by a process that is gone. */
export function acquire(leases: Leases, wish: Wish, now: number, gone: (holder: Holder) => boolean): Answer {
  const held = leases[wish.place]
  const free =
    held === undefined || held.expires <= now || (held.holder !== undefined && gone(held.holder)) || wish.steal === true
  if (!free) return { granted: false, held, leases }
  const { place, owner, token, ttlMs, holder } = wish
  const lease: Lease = { place, owner, token, since: now, expires: now + ttlMs, ...(holder && { holder }) }
  return { granted: true, lease, leases: { ...leases, [place]: lease }, ...(held && { instead: held }) }
}

/** A heartbeat. Refused when somebody else has the place; one that ran out and that nobody took meanwhile goes on. */
export function renew(leases: Leases, place: string, token: string, ttlMs: number, now: number): Answer {
  const held = leases[place]
  if (held === undefined || held.token !== token) return { granted: false, held, leases }
  const lease = { ...held, expires: now + ttlMs }
  return { granted: true, lease, leases: { ...leases, [place]: lease } }
}

/** Gives a place back; a lease of somebody else stays. */
export function release(leases: Leases, place: string, token: string): Leases {
  if (leases[place]?.token !== token) return leases
  return Object.fromEntries(Object.entries(leases).filter(([name]) => name !== place))
}

/** One line for a person: who, since when, until when. */
export function leaseText({ place, owner, since, expires }: Lease, now: number): string {
  const seconds = (ms: number) => `${Math.round(ms / 1000)} s`
  const left = expires > now ? `runs out in ${seconds(expires - now)} unless renewed` : 'has run out'
  return `${place} is leased by ${owner} for ${seconds(now - since)}; it ${left}`
}

/** Reads what was stored or sent. Anything else than leases is undefined. */
export function readLeases(value: unknown): Leases | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  const entries = Object.entries(value as Readonly<Record<string, unknown>>)
  return entries.every(([name, lease]) => isLease(lease) && lease.place === name) ? (value as Leases) : undefined
}

export function isLease(value: unknown): value is Lease {
  if (typeof value !== 'object' || value === null) return false
  const { place, owner, token, since, expires } = value as Readonly<Record<string, unknown>>
  const text = [place, owner, token].every((field) => typeof field === 'string')
  return text && [since, expires].every((field) => typeof field === 'number')
}
