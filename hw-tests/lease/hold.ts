import { randomBytes } from 'node:crypto'
import { hostname, userInfo } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { LabError } from '../harness/lab-error.ts'
import { leaseText } from './lease.ts'
import { remoteStore } from './remote.ts'
import { type LeaseStore, localStore, lockFolder, sinceBoot, thisHolder } from './store.ts'

export interface SharedLease {
  readonly place: string
  /** Ends everything that uses the board as soon as the lease is lost; the reason is a LabError. */
  readonly signal: AbortSignal
  /** @throws LabError when the lease is lost: nobody may touch the board any more */
  check(): void
}

/** A lease that is kept alive while it is held. */
export interface HeldLease extends SharedLease {
  readonly token: string
  release(): Promise<void>
}

export interface HoldOptions {
  readonly owner?: string
  readonly ttlMs?: number
  /** How long to wait for a place that somebody has (0). */
  readonly waitMs?: number
  /** Pause between two questions while waiting (2000). */
  readonly askMs?: number
  /** Take it even from a living owner, and wait until that one's lease would have run out: until then it may not know. */
  readonly steal?: boolean
  readonly say?: (line: string) => void
}

/** Of a lease, in milliseconds, unless told. */
export const TTL_MS = 60_000
const ASK_MS = 2_000

/** The lease server in `HIL_LEASES`, with its `HIL_LEASE_TOKEN`, or else the file of this machine. */
export function chooseStore(env: Readonly<Record<string, string | undefined>>): LeaseStore {
  const server = env['HIL_LEASES']
  if (server === undefined || server === '') return localStore(lockFolder(env))
  return remoteStore(server, env['HIL_LEASE_TOKEN'] ?? '')
}

export function defaultOwner(env: Readonly<Record<string, string | undefined>>): string {
  const job = env['GITHUB_RUN_ID'] ?? env['CI_JOB_ID']
  const what = job === undefined ? `process ${process.pid}` : `job ${job}`
  return `${userInfo().username}@${hostname()}, ${what}`
}

/** Milliseconds in `HIL_WAIT`, which are whole seconds. @throws LabError when it says anything else */
export function waitMs(env: Readonly<Record<string, string | undefined>>): number {
  const text = env['HIL_WAIT'] ?? ''
  if (!/^\d{0,6}$/.test(text)) throw new LabError(`HIL_WAIT is "${text}", a whole number of seconds was wanted`)
  return 1000 * Number(text)
}

/** Leases a place and beats three times per ttl. @throws LabError when somebody else has it */
export async function hold(store: LeaseStore, place: string, options: HoldOptions = {}): Promise<HeldLease> {
  const ttlMs = options.ttlMs ?? TTL_MS
  const token = randomBytes(16).toString('hex')
  const owner = options.owner ?? defaultOwner(process.env)
  const wish = { place, owner, token, ttlMs, holder: thisHolder(), ...(options.steal === true && { steal: true }) }
  const deadline = sinceBoot() + (options.waitMs ?? 0)
  for (let told = false; ; ) {
    const asked = sinceBoot()
    const answer = await store.acquire(wish)
    if (answer.granted) {
      const lease = { ...keep(store, place, token, ttlMs, asked), token }
      const { instead } = answer
      if (instead === undefined) return lease
      options.say?.(`lease: taken over from ${instead.owner}`)
      // By the store's clock. One that had run out, or whose process is gone, needs no time.
      const left = options.steal === true ? instead.expires - answer.lease.since : 0
      if (left > 0) await sleep(left, undefined, { signal: lease.signal }).catch(() => lease.check())
      return lease
    }
    const who = answer.held === undefined ? `${place} is leased` : leaseText(answer.held, Date.now())
    if (sinceBoot() >= deadline) throw new LabError(who)
    if (!told) options.say?.(`lease: waiting: ${who}`)
    told = true
    await sleep(Math.min(options.askMs ?? ASK_MS, Math.max(1, deadline - sinceBoot())))
  }
}

/**
 * Keeps a lease alive that this run took in another process, and hears of its loss; giving it back is left to that one.
 * @throws LabError when it is not held
 */
export async function share(store: LeaseStore, place: string, token: string, ttlMs = TTL_MS): Promise<SharedLease> {
  const asked = sinceBoot()
  const answer = await store.renew(place, token, ttlMs)
  if (!answer.granted) {
    const who = answer.held === undefined ? '' : `: ${leaseText(answer.held, Date.now())}`
    throw new LabError(`this run has no lease of ${place}${who}`)
  }
  const { release: _, ...shared } = keep(store, place, token, ttlMs, asked)
  return shared
}

/** `last`: when the lease was asked for, so that it is given up here before it runs out there. */
function keep(store: LeaseStore, place: string, token: string, ttlMs: number, last: number): Omit<HeldLease, 'token'> {
  const lost = new AbortController()
  let busy = false
  const lose = (why: string) => {
    clearInterval(timer)
    clearTimeout(end)
    if (!lost.signal.aborted) lost.abort(new LabError(`the lease of ${place} is lost: ${why}`))
  }
  const beat = async () => {
    if (busy) return
    busy = true
    const asked = sinceBoot()
    try {
      const answer = await store.renew(place, token, ttlMs)
      if (answer.granted) last = asked
      else lose(answer.held === undefined ? 'it was given away' : `${answer.held.owner} has taken it`)
    } catch {
      // Told when it runs out.
    } finally {
      busy = false
    }
  }
  const timer = setInterval(beat, ttlMs / 3)
  timer.unref()
  // A store that does not answer is asked again; when the lease has run out, another may have it.
  const watch = () => {
    const left = last + ttlMs - sinceBoot()
    if (left <= 0) return lose('its store did not answer in time')
    end = setTimeout(watch, left)
    end.unref()
  }
  let end = setTimeout(watch, ttlMs)
  end.unref()
  return {
    place,
    signal: lost.signal,
    check: () => {
      if (!lost.signal.aborted && sinceBoot() - last >= ttlMs) lose('no heartbeat in time')
      if (lost.signal.aborted) throw lost.signal.reason
    },
    release: async () => {
      clearInterval(timer)
      clearTimeout(end)
      await store.release(place, token).catch(() => {})
    },
  }
}
