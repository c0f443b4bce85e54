import {
  type AddonFacts,
  type AddonStatement,
  type AddonVerdict,
  type AuthenticAddon,
  judgeAddon,
} from '../../bundle/addon.ts'
import { addonErrors } from '../../bundle/addon-errors.ts'
import { openAddon } from '../../bundle/addon-file.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { AddonMounts } from '../addons/mounts.ts'
import { type AddonStarts, MOST_STARTS } from '../addons/starts.ts'
import type { AddonStore } from '../addons/store.ts'
import type { Failure } from '../records/record.ts'
import { clockFacts } from './assignment.ts'
import { addOutcome } from './body.ts'
import { type Core, failureFrom } from './core.ts'
import { guarded } from './guarded.ts'
import { earliestNow } from './time.ts'

/** Add-ons of this device: what counts now is over /usr, what has had its time goes, and every change is said and recorded. */

export interface AddonPort {
  readonly store: AddonStore
  readonly mounts: AddonMounts
  readonly starts: AddonStarts
}

export interface AddonStatus {
  readonly name: string
  readonly kind: AddonStatement['kind'] | null
  readonly summary: string | null
  /** `failed`: it should be active, and `reason` says what went wrong. */
  readonly state: 'active' | 'inactive' | 'failed'
  readonly fixes: readonly string[]
  readonly expires: string | null
  readonly digest: string | null
  readonly reason: Failure | null
}

const LOOK_MS = 60_000

/** Keeps what is over /usr in step with the release, the time and the keys, until the signal is aborted. */
export async function watchAddons(core: Core, signal: AbortSignal): Promise<void> {
  const { addons } = core.ports
  if (addons === undefined) return
  await guarded(core, 'addon', () => inTurn(core, () => dropUnanswered(core, addons)))
  while (!signal.aborted) {
    await guarded(core, 'addon', () => reviewAddons(core))
    await guarded(core, 'addon', () => addons.starts.answer())
    await core.ports.clock.sleep(LOOK_MS, signal).catch(() => undefined)
  }
}

/** Before the agent runs: nothing is decided or recorded, only what counts is put over /usr. @returns lines for people */
export async function activateEarly(core: Core): Promise<readonly string[]> {
  const { addons } = core.ports
  if (addons === undefined) return []
  const { verdicts } = await judged(core, addons)
  const active = verdicts.filter(({ verdict }) => verdict.use === 'active').map(({ addon }) => addon)
  if (active.length === 0) return []
  const starts = await addons.starts.unanswered()
  if (starts >= MOST_STARTS) return [`addons are left out: ${starts} starts with them were not answered`]
  await addons.starts.count()
  const failed = await addons.mounts.merge(active, (name) => addons.store.image(name))
  return active.map(({ name }) => {
    const error = failed.get(name)
    return error === undefined ? `addon ${name} is over /usr` : `addon ${name} is not over /usr: ${error.message}`
  })
}

/** What was over /usr at starts that never brought up an agent. */
async function dropUnanswered(core: Core, addons: AddonPort): Promise<void> {
  const starts = await addons.starts.unanswered()
  if (starts < MOST_STARTS) return
  const { verdicts } = await judged(core, addons)
  for (const { name } of verdicts.filter(({ verdict }) => verdict.use === 'active')) {
    await addons.store.remove(name)
    const message = `${name} was dropped: the agent did not come up in ${starts} starts with it`
    await note(core, { ok: false, code: 'ADDON_UNANSWERED', message })
  }
}

/** Drops what has had its time, and makes the rest active where it was made for the running release. */
export function reviewAddons(core: Core): Promise<readonly AddonStatus[]> {
  return inTurn(core, () => review(core))
}

const turns = new WeakMap<Core, Promise<unknown>>()

/** One change of what lies over /usr at a time: a look that comes in the middle of an apply would undo half of it. */
function inTurn<T>(core: Core, work: () => Promise<T>): Promise<T> {
  const turn = (turns.get(core) ?? Promise.resolve()).then(work)
  turns.set(
    core,
    turn.catch(() => undefined),
  )
  return turn
}

async function review(core: Core): Promise<readonly AddonStatus[]> {
  const { addons, say, unlocking } = core.ports
  if (addons === undefined) return []
  // The layer of an unlocked /usr lies over all: nothing below it is moved.
  if ((await unlocking?.until()) !== undefined) return await addonStatus(core)
  const { stored, verdicts } = await judged(core, addons)
  for (const { name, verdict } of verdicts.filter(({ verdict }) => verdict.use === 'drop')) {
    if (verdict.use !== 'drop') continue
    await addons.store.remove(name)
    await note(core, {
      ok: verdict.code === 'ADDON_CONTAINED',
      code: verdict.code,
      message: `${name} was dropped: ${verdict.message}`,
    })
  }
  const active = stored.filter(({ name }) => verdicts.some((v) => v.name === name && v.verdict.use === 'active'))
  const statements = active.map(({ addon }) => addon?.statement).filter((s) => s !== undefined)
  const before = await addons.mounts.active()
  const failed = await addons.mounts.merge(statements, (name) => addons.store.image(name))
  const after = await addons.mounts.active()
  for (const name of after.filter((name) => !before.includes(name)))
    say(`bistable: addon ${name} is over /usr`, 'warning')
  for (const name of before.filter((name) => !after.includes(name)))
    say(`bistable: addon ${name} is not over /usr any more`)
  const status = stored
    .filter(({ name }) => !verdicts.some((v) => v.name === name && v.verdict.use === 'drop'))
    .map(({ name, addon, problem }) => {
      const verdict = verdicts.find((v) => v.name === name)?.verdict
      const error = failed.get(name)
      const wrong = problem ?? (error && failureFrom(error))
      const state = wrong !== undefined ? 'failed' : verdict?.use === 'active' ? 'active' : 'inactive'
      return shown(
        name,
        addon?.statement,
        addon?.digest,
        state,
        wrong ?? (verdict?.use === 'inactive' ? verdict : undefined),
      )
    })
  for (const { name, reason } of status.filter(({ state }) => state !== 'active')) {
    const known = core.activity.addons?.find((one) => one.name === name)?.reason?.message
    // What fails or waits in the same way all the time is recorded once.
    if (reason !== null && reason.message !== known)
      await note(core, { ok: false, code: reason.code, message: `${name} is not over /usr: ${reason.message}` })
  }
  core.activity.addons = status
  return status
}

/** What is stored, and what is to become of it, without doing it. */
export async function addonStatus(core: Core): Promise<readonly AddonStatus[]> {
  const { addons } = core.ports
  if (addons === undefined) return []
  if (core.activity.addons !== undefined) return core.activity.addons
  const { stored, verdicts } = await judged(core, addons)
  const over = await addons.mounts.active()
  return stored.map(({ name, addon, problem }) => {
    const verdict = verdicts.find((v) => v.name === name)?.verdict
    const reason = problem ?? (verdict?.use === 'active' ? undefined : verdict)
    return shown(name, addon?.statement, addon?.digest, over.includes(name) ? 'active' : 'inactive', reason)
  })
}

/** @throws ADDON_* when it does not count here; the errors of keys/ and of the door */
export async function applyAddon(core: Core, from: string, signal: AbortSignal): Promise<string> {
  return (await inTurn(core, () => apply(core, from, 'told', signal))).message
}

export interface CarriedAddon {
  /** False: it is here already, gives way to a newer one of its name, or was only to be looked at. */
  readonly applied: boolean
  readonly message: string
}

/**
 * An add-on that nobody named, from a stick: one that is here already stays as it is, and an older one never takes the place
 * of a newer one.
 * @param check only says what would become of it
 * @throws as `applyAddon`
 */
export function applyCarried(core: Core, from: string, check: boolean, signal: AbortSignal): Promise<CarriedAddon> {
  return inTurn(core, () => apply(core, from, check ? 'check' : 'carried', signal))
}

type Asked = 'told' | 'carried' | 'check'

async function apply(core: Core, from: string, asked: Asked, signal: AbortSignal): Promise<CarriedAddon> {
  const port = portOf(core)
  const source = await core.ports.engine.open(from, signal)
  try {
    const head = await openAddon(source, core.trusted, signal)
    await core.learnRoots(head.trusted)
    const { statement } = head
    const verdict = judgeAddon(statement, await factsFor(core, statement))
    if (verdict.use !== 'active') throw addonErrors[verdict.code](`${statement.name}: ${verdict.message}`)
    if ((await core.ports.unlocking?.until()) !== undefined)
      throw addonErrors.ADDON_STATE('/usr is unlocked; reboot, or wait until that ends')
    const needless = asked === 'told' ? undefined : await whyNeedless(core, port, head)
    if (needless !== undefined) return { applied: false, message: `${statement.name} ${needless}` }
    if (asked === 'check') return { applied: false, message: `${statement.name} would be put over /usr` }
    // One of the same name gives way before its file does.
    const { verdicts } = await judged(core, port)
    const others = verdicts.filter((one) => one.name !== statement.name && one.verdict.use === 'active')
    await port.mounts.merge(
      others.map(({ addon }) => addon),
      (name) => port.store.image(name),
    )
    try {
      await port.store.add(head, source, signal, () => core.activity.beat())
    } catch (error) {
      await review(core)
      throw error
    }
    const status = (await review(core)).find(({ name }) => name === statement.name)
    if (status?.state !== 'active') {
      await port.store.remove(statement.name)
      await review(core)
      throw addonErrors.ADDON_MOUNT(`${statement.name}: ${status?.reason?.message ?? 'it did not become active'}`)
    }
    const message = `${statement.name} (${statement.kind}) is over /usr until ${statement.expires}: ${statement.summary}`
    await note(core, { ok: true, message })
    return { applied: true, message }
  } finally {
    await source.close()
  }
}

/** Why an add-on that came by itself changes nothing; undefined: it does. One that is here and does not work is put on anew. */
async function whyNeedless(core: Core, port: AddonPort, { statement, digest }: AuthenticAddon) {
  const { stored } = await judged(core, port)
  const there = stored.find(({ name }) => name === statement.name)?.addon
  if (there === undefined) return undefined
  if (there.digest === digest)
    return (await port.mounts.active()).includes(statement.name) ? 'is over /usr already' : undefined
  return there.statement.issued > statement.issued ? 'is here already, from a later time' : undefined
}

/** @throws ADDON_STATE */
export function removeAddon(core: Core, name: string): Promise<string> {
  return inTurn(core, async () => {
    const port = portOf(core)
    if (!(await port.store.remove(name))) throw addonErrors.ADDON_STATE(`there is no add-on '${name}'`)
    await review(core)
    await note(core, { ok: true, message: `${name} was removed` })
    return `${name} is removed`
  })
}

function portOf({ ports }: Core): AddonPort {
  if (ports.addons === undefined) throw addonErrors.ADDON_STATE('this system takes no add-ons')
  return ports.addons
}

async function judged(core: Core, { store }: AddonPort) {
  const stored = await store.list(core.trusted)
  const verdicts: { name: string; addon: AddonStatement; verdict: AddonVerdict }[] = []
  for (const { name, addon } of stored) {
    if (addon !== undefined)
      verdicts.push({
        name,
        addon: addon.statement,
        verdict: judgeAddon(addon.statement, await factsFor(core, addon.statement)),
      })
  }
  return { stored, verdicts }
}

async function factsFor(core: Core, { kind }: AddonStatement): Promise<AddonFacts> {
  const { ports, line, body } = core
  const clock = await clockFacts(core)
  const certain = earliestNow(body, clock)
  const known = body.slots[line.slot] ?? (await ports.engine.storedRelease(line.slot))?.facts
  const same = known !== undefined && formatNumber(known.number) === formatNumber(line.release)
  return {
    release: same ? known.digest : undefined,
    product: ports.config.product,
    contains: ports.config.fixes,
    committed: body.state.name !== 'trying',
    // A clock that may be wrong can take tools away too early, and no fix.
    now: kind === 'debug' ? Math.max(certain, clock.wall.getTime()) : certain,
  }
}

function shown(
  name: string,
  statement: AddonStatement | undefined,
  digest: string | undefined,
  state: AddonStatus['state'],
  reason: Failure | undefined,
): AddonStatus {
  const { kind = null, summary = null, fixes = [], expires = null } = statement ?? {}
  const told = reason === undefined ? null : { code: reason.code, message: reason.message }
  return { name, kind, summary, state, fixes, expires, digest: digest ?? null, reason: told }
}

/** Into the history, once for the same thing. */
async function note(core: Core, outcome: { readonly ok: boolean; readonly code?: string; readonly message: string }) {
  const last = core.body.outcomes.findLast(({ what }) => what === 'addon')
  if (last?.code === outcome.code && last?.message === outcome.message) return
  core.say(`bistable: addon ${outcome.message}`, outcome.ok ? 'info' : 'warning')
  const at = core.now().wall
  const { ok, code, message } = outcome
  await core.update((body) =>
    addOutcome(body, { at, what: 'addon', ok, message, ...(ok || code === undefined ? {} : { code }) }),
  )
}

/** For `status` and `bistable addon list`. Pure. */
export function addonLines(addons: readonly AddonStatus[]): string[] {
  return addons.map(({ name, kind, state, expires, fixes, reason, summary }) => {
    const about = [kind ?? 'unknown', fixes.join(' ')].filter(Boolean).join(' ')
    const why = reason === null ? '' : `  ${reason.code}: ${reason.message}`
    return `addon ${name}  ${state.toUpperCase()}  ${about}  until ${expires ?? '?'}  ${summary ?? ''}${why}`
  })
}
