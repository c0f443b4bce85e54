import { printable } from '../../base/printable.ts'
import type { Slot } from '../../bootloader/state.ts'
import { otherSlot, SLOTS } from '../../bootloader/state.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { classOf } from '../codes.ts'
import { shown as withoutSecrets } from '../doors/request.ts'
import type { Assigned, Outcome } from '../records/record.ts'
import { addonLines, addonStatus } from './addons.ts'
import { type AssignedState, assignedState, clockFacts } from './assignment.ts'
import type { Core } from './core.ts'
import { failureFrom } from './core.ts'
import { driftSeen } from './drift-watch.ts'
import { isFresh } from './time.ts'
import { type KeptHealth, lastHealth } from './verdict.ts'

/** Everything a person wants to know, from the records, the boot state and the kernel command line. */

export interface SlotStatus {
  readonly running: boolean
  /** `primary`, `trial`, `spare` (can be returned to) or `other`; `unknown` when the boot state cannot be read. */
  readonly role: 'primary' | 'trial' | 'spare' | 'other' | 'unknown'
  /** "EPOCH.COUNTER"; null when nothing is recorded. */
  readonly release: string | null
  readonly version: string | null
  readonly digest: string | null
  readonly committed: boolean | null
  /** Tries left, of the slot on trial. */
  readonly triesLeft: number | null
}

export type Status = Awaited<ReturnType<typeof statusOf>>

export async function statusOf(core: Core) {
  const { body, line, ports } = core
  const boot = await readBoot(core)
  const slots = {} as Record<Slot, SlotStatus>
  for (const slot of SLOTS) slots[slot] = await slotStatus(core, slot, boot.state)
  const clock = await clockFacts(core)
  const { assignment, freshness } = body
  const lastFailure = body.outcomes.findLast((o) => !o.ok)
  const lastCheck = body.outcomes.findLast((o) => o.what === 'check')
  return {
    product: ports.config.product,
    hardware: ports.config.hardware,
    state: body.state.name,
    since: 'since' in body.state ? body.state.since : null,
    job: 'job' in body.state ? { ...body.state.job, number: formatNumber(body.state.job.number) } : null,
    reason: 'failed' in body.state ? (body.state.failed ?? null) : null,
    busy: core.busyWith === undefined ? null : { what: core.busyWith.what, since: core.busyWith.since },
    waiting: waitingOf(core),
    running: { slot: line.slot, release: formatNumber(line.release), boot: line.boot, why: line.why },
    slots,
    boot: { backend: boot.backend, generation: boot.state?.generation ?? null, problem: boot.problem ?? null },
    data: await dataOf(core, slots),
    installFloor: formatNumber(body.installFloor),
    securityFloor: formatNumber(body.securityFloor),
    rootVersion: core.trusted.current.version,
    freshness:
      freshness === undefined
        ? null
        : {
            channel: freshness.channel,
            newest: formatNumber(freshness.number),
            digest: freshness.digest,
            issued: freshness.issued,
            expires: freshness.expires,
            checked: freshness.at,
            clock: freshness.clock,
            // Without a clock to trust only what expired for certain is stale; else nobody can say.
            fresh: isFresh(freshness.expires, body, clock) ?? null,
          },
    deviceId: ports.deviceId ?? null,
    assignment: assignment === undefined ? null : assignedStatus(assignment, assignedState(assignment, body, clock)),
    channel: ports.config.agent.channel === undefined ? null : shownAddress(ports.config.agent.channel),
    apply: ports.config.agent.apply,
    lastCheck: shown(lastCheck),
    lastOutcome: shown(body.outcomes.at(-1)),
    lastFailure: shown(lastFailure),
    /** Every check of the last try, with its times. */
    health: (await lastHealth(ports.data, ports.files)) ?? null,
    addons: await addonStatus(core),
    unlocked: (await ports.unlocking?.until())?.toISOString() ?? null,
    /** The last count of what differs from the running release; `bistable drift` lists it. */
    drift: core.activity.drift ?? (await driftSeen(core)) ?? null,
    blocked: body.blocked.map((entry) => ({
      ...entry,
      number: entry.number === undefined ? null : formatNumber(entry.number),
    })),
    outcomes: body.outcomes.map(told),
    problems: core.problems,
  }
}

/** Why the next step by policy is not taken yet. Only the agent that runs knows. */
function waitingOf({ activity }: Core) {
  const { waiting } = activity
  if (waiting === undefined) return null
  const { code, message, until } = waiting
  return { code, message, until: until === undefined ? null : new Date(until).toISOString() }
}

/** The data's schema, what is kept of the state, and what a roll back to the other slot would meet. */
async function dataOf({ ports, line }: Core, slots: Readonly<Record<Slot, SlotStatus>>) {
  const facts = await ports.state?.facts()
  if (ports.state === undefined || facts === undefined) return null
  const slot = otherSlot(line.slot)
  const { role, release } = slots[slot]
  const spare = role === 'spare' && release !== null
  const verdict = spare ? await ports.state.verdict(slot, release, formatNumber(line.release)) : undefined
  const snapshots = (await ports.state.snapshots()).map(({ name }) => name).sort()
  return { ...facts, snapshots, rollBack: verdict === undefined ? null : { slot, ...verdict } }
}

/** Status is for everyone: no password or token of the address. */
function shownAddress(address: string): string {
  return URL.canParse(address) ? withoutSecrets(new URL(address)) : address
}

function assignedStatus(assigned: Assigned, state: AssignedState) {
  const { sequence, number, release, notBefore, expires, allowDowngrade } = assigned
  return {
    sequence,
    release: formatNumber(number),
    digest: release,
    state,
    notBefore: notBefore ?? null,
    expires,
    allowDowngrade,
  }
}

const releaseOf = ({ release }: Outcome) => (release === undefined ? {} : { release: formatNumber(release) })

/** As it is told everywhere: with the class of its code and the exit code that belongs to it. */
const told = (outcome: Outcome) => ({ ...outcome, ...releaseOf(outcome), ...classOf(outcome) })

function shown(outcome: Outcome | undefined) {
  return outcome === undefined ? null : told(outcome)
}

async function readBoot(core: Core) {
  try {
    const { name, place } = await core.ports.boot.describe()
    const backend = { name, place }
    const state = await core.ports.boot.read()
    const problem =
      state === undefined ? { code: 'TRY_STATE_UNREADABLE', message: 'both copies are damaged' } : undefined
    return { state, problem, backend }
  } catch (error) {
    return { state: undefined, problem: failureFrom(error), backend: null }
  }
}

async function slotStatus(
  core: Core,
  slot: Slot,
  boot: Awaited<ReturnType<typeof readBoot>>['state'],
): Promise<SlotStatus> {
  const facts = core.body.slots[slot] ?? (await core.ports.engine.storedRelease(slot))?.facts
  const running = core.line.slot === slot
  const role =
    boot === undefined
      ? 'unknown'
      : boot.primary === slot
        ? 'primary'
        : boot.trial === slot
          ? 'trial'
          : boot.spare
            ? 'spare'
            : 'other'
  return {
    running,
    role,
    release: facts === undefined ? (running ? formatNumber(core.line.release) : null) : formatNumber(facts.number),
    version: facts?.version ?? null,
    digest: facts?.digest ?? null,
    committed: facts?.committed ?? null,
    triesLeft: boot?.trial === slot ? boot.left : null,
  }
}

/** The same for people. */
export function statusText(status: Status): string {
  const lines = [
    `${status.product}  state ${status.state}${status.busy === null ? '' : `  (${status.busy.what} since ${status.busy.since})`}`,
  ]
  if (status.job !== null)
    lines.push(`  release ${status.job.number} (${status.job.version}) in slot ${status.job.slot}`)
  if (status.reason !== null) lines.push(`  reason ${status.reason.code}: ${status.reason.message}`)
  if (status.waiting !== null) lines.push(`  ${status.waiting.code}: ${status.waiting.message}`)
  for (const slot of SLOTS) {
    const s = status.slots[slot]
    const what =
      s.release === null ? 'nothing recorded' : `${s.release} ${s.version ?? ''} ${s.digest?.slice(0, 12) ?? ''}`
    const tries = s.triesLeft === null ? '' : `  tries left ${s.triesLeft}`
    lines.push(`slot ${slot}  ${s.running ? '*' : ' '} ${s.role.padEnd(8)} ${what.trim()}${tries}`)
  }
  const { boot } = status
  if (boot.problem !== null) lines.push(`boot state: ${boot.problem.code}: ${boot.problem.message}`)
  const { data } = status
  if (data !== null) {
    const kept = data.snapshots.length === 0 ? '' : `  snapshots ${data.snapshots.length}`
    lines.push(`data  schema ${data.schema}, for releases of ${data.readableBy} and newer  ${data.filesystem}${kept}`)
    if (data.own < data.readableBy)
      lines.push(`  STATE_NEWER: the running release has schema ${data.own} and cannot read them`)
    if (data.rollBack?.reads === false) {
      const { slot, snapshot } = data.rollBack
      const way = snapshot === null ? '--force' : '--with-state or --force'
      lines.push(`  a roll back to slot ${slot} is refused without ${way}: its release cannot read these data`)
    }
  }
  lines.push(
    `floors  install ${status.installFloor}  security ${status.securityFloor}  root version ${status.rootVersion}`,
  )
  const f = status.freshness
  const fresh =
    f === null ? 'never checked' : f.fresh === null ? 'unknown (clock not set)' : f.fresh ? 'fresh' : 'stale'
  lines.push(`channel ${status.channel ?? 'none'}  apply ${status.apply}  freshness ${fresh}`)
  if (f !== null) lines.push(`  newest ${f.newest}, issued ${f.issued}, expires ${f.expires}`)
  const a = status.assignment
  if (a !== null) lines.push(`assigned ${a.release} ${a.digest.slice(0, 12)}  sequence ${a.sequence}  ${a.state}`)
  lines.push(`device id ${status.deviceId ?? 'none'}`)
  const show = (name: string, o: Status['lastOutcome']) => {
    if (o !== null) lines.push(`${name}  ${o.at}  ${o.what}  ${o.ok ? 'ok' : (o.code ?? 'failed')}: ${o.message}`)
  }
  show('last check  ', status.lastCheck)
  show('last outcome', status.lastOutcome)
  show('last failure', status.lastFailure)
  if (status.health !== null) lines.push(healthLine(status.health))
  lines.push(...addonLines(status.addons))
  if (status.unlocked !== null)
    lines.push(`UNLOCKED  /usr can be written until ${status.unlocked}; nothing of it is kept`)
  if (status.drift !== null)
    lines.push(
      `drift  ${status.drift.count} paths, ${status.drift.owned} of them the device's own, at ${status.drift.at}`,
    )
  for (const b of status.blocked)
    lines.push(`blocked ${b.number ?? '?'} ${b.digest.slice(0, 12)} since ${b.at}: ${b.reason}`)
  for (const problem of status.problems) lines.push(`problem: ${problem}`)
  return lines.map(printable).join('\n')
}

function healthLine({ at, release, ok, checks }: KeptHealth): string {
  const failed = checks.filter((check) => !check.ok)
  const names = failed.map(({ name, required }) => `${name}${required ? '' : ' (wanted)'}`)
  const what = failed.length === 0 ? 'all passed' : `failed: ${names.join(', ')}`
  return `last health  ${at}  release ${release}  ${ok ? 'ok' : 'not healthy'}  ${checks.length} checks, ${what}`
}

/** The last outcomes for people, oldest first. */
export function historyText({ outcomes }: Pick<Status, 'outcomes'>): string {
  if (outcomes.length === 0) return 'nothing happened yet'
  return outcomes
    .map(({ at, what, ok, code, release, message }) => {
      const about = release === undefined ? '' : ` ${release}`
      return printable(`${at}  ${what.padEnd(9)} ${ok ? 'ok' : (code ?? 'failed')}${about}: ${message}`)
    })
    .join('\n')
}
