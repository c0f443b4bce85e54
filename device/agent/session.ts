import { encodeMessage, type ProgressReport, type StateReport } from '../../broker/messages.ts'
import { deviceTopic, MAX_RETAINED_BYTES } from '../../broker/topics.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { Lease } from '../doors/brokers.ts'
import { type Core, failureFrom } from './core.ts'

/**
 * The agent's standing tie to a broker, for a device whose channel is there: what is announced is looked at once it
 * comes, beside the polls, and what the device is and does is told. Nothing that is heard here is believed: it only
 * brings the next check forward.
 */

const TICK_MS = 500
const PROGRESS_MS = 2000
/** Between two checks that announcements brought on; doubles while they keep coming, up to the last. */
const GAP_MS = 5000
const MAX_GAP_MS = 600_000

/** When an announcement may bring on a check: at once, but the more often, the later. Pure but for its memory. */
export class Gate {
  #gap = GAP_MS
  #openAt = Number.NEGATIVE_INFINITY
  #wanted = false

  /** Something new was announced. @returns false when that was known to be coming already */
  want(): boolean {
    if (this.#wanted) return false
    this.#wanted = true
    return true
  }

  /** True once for each check that is due. @param now milliseconds, monotonic */
  due(now: number): boolean {
    if (!this.#wanted || now < this.#openAt) return false
    this.#wanted = false
    this.#gap = now - this.#openAt < this.#gap ? Math.min(this.#gap * 2, MAX_GAP_MS) : GAP_MS
    this.#openAt = now + this.#gap
    return true
  }
}

/** The first address of the channel that is on a broker. Pure. */
export function channelOnBroker(agent: Core['ports']['config']['agent']): string | undefined {
  return [agent.channel, ...agent.mirrors].find((place) => /^mqtts?:/i.test(place ?? ''))
}

/** Runs until the signal is aborted; returns at once when no channel of this device is on a broker. Never rejects. */
export async function runSession(core: Core, signal: AbortSignal): Promise<void> {
  const { brokers, config, clock } = core.ports
  const address = channelOnBroker(config.agent)
  if (brokers === undefined || address === undefined) return
  let lease: Lease
  try {
    lease = brokers.lease(address)
  } catch (error) {
    // Each check says the same, with its code.
    core.say(`bistable: ${failureFrom(error).message}`, 'warning')
    return
  }
  const { link, root, file, device } = lease
  const gate = new Gate()
  const topics = [`${root}/${file}`, `${root}/assignments/${device}.json`]
  const known = new Map<string, Uint8Array>()
  let told = ''
  const listener = {
    message: (topic: string, payload: Uint8Array, retained: boolean): boolean => {
      if (!topics.includes(topic) || payload.length === 0 || payload.length > MAX_RETAINED_BYTES) return false
      const before = known.get(topic)
      if (before !== undefined && Buffer.compare(before, payload) === 0) return false
      known.set(topic, Uint8Array.from(payload))
      // What stood there when the agent started is what its first poll asks for anyway.
      if (before === undefined && retained) return true
      return gate.want()
    },
    up: () => {
      told = ''
    },
  }
  const detach = link.listen(listener)
  for (const topic of topics) link.want(listener, topic)
  let progress: ProgressReport | undefined
  let progressAt = Number.NEGATIVE_INFINITY
  const unwatch = core.activity.subscribe((notice) => {
    if ('progress' in notice) progress = progressReport(notice.progress)
  })
  const say = (leaf: 'state' | 'progress', report: StateReport | ProgressReport) =>
    link.publish({
      topic: deviceTopic(root, device, leaf),
      payload: encodeMessage(report),
      ...(leaf === 'state' ? { retain: true, qos: 1 as const } : {}),
    })
  while (!signal.aborted) {
    if (gate.due(clock.now())) core.activity.wake()
    const state = stateReport(core)
    const text = JSON.stringify(state)
    // Not waited for: a broker that is slow must not keep announcements waiting.
    if (text !== told && link.connected) {
      told = text
      void say('state', state).then((sent) => {
        if (!sent) told = ''
      })
    }
    if (progress !== undefined && clock.now() - progressAt >= PROGRESS_MS) {
      progressAt = clock.now()
      void say('progress', progress)
      progress = undefined
    }
    await clock.sleep(TICK_MS, signal).catch(() => undefined)
  }
  unwatch?.()
  detach()
  lease.release()
}

/** What the fleet is told: small, and nothing that status does not show to everyone. Pure. */
export function stateReport(core: Pick<Core, 'body' | 'line' | 'activity' | 'ports'>): StateReport {
  const { body, line } = core
  const { drift, addons = [] } = core.activity
  const over = addons.map(({ name, state }) => ({ name, state }))
  const version = body.slots[line.slot]?.version
  const outcome = body.outcomes.at(-1)
  const job = 'job' in body.state ? body.state.job : undefined
  return {
    v: 1,
    product: core.ports.config.product,
    state: body.state.name,
    running: {
      slot: line.slot,
      release: formatNumber(line.release),
      ...(version === undefined ? {} : { version: version.slice(0, 128) }),
    },
    job: job === undefined ? null : { release: formatNumber(job.number), digest: job.digest },
    ...(over.length === 0 ? {} : { addons: over }),
    ...(drift === undefined ? {} : { drift: { at: drift.at, count: drift.count, owned: drift.owned } }),
    outcome:
      outcome === undefined
        ? null
        : {
            at: outcome.at,
            what: outcome.what.slice(0, 32),
            ok: outcome.ok,
            ...(outcome.code === undefined ? {} : { code: outcome.code.slice(0, 64) }),
            message: outcome.message.slice(0, 600),
          },
  }
}

function progressReport(said: Readonly<Record<string, unknown>>): ProgressReport | undefined {
  const { phase, image, done, total, fetched } = said
  const count = (value: unknown) => (Number.isSafeInteger(value) && Number(value) >= 0 ? Number(value) : 0)
  if (typeof phase !== 'string') return undefined
  const named = typeof image === 'string' ? image : null
  return { v: 1, phase, image: named, done: count(done), total: count(total), fetched: count(fetched) }
}
