import { isBistableError, systemCode } from '../../base/errors.ts'
import { adopt, claim, commit, freshState, refuse, renew, retire } from '../../bootloader/machine.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'
import { NO_PLAN } from '../../bundle/health-plan.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { deviceErrors } from '../errors.ts'
import { clip, type Failure, type RecordBody } from '../records/record.ts'
import { openRecords, type RecordStore } from '../records/store.ts'
import { mendAround } from '../repair/mend.ts'
import { planRepair } from '../repair/plan.ts'
import { Activity } from './activity.ts'
import { addOutcome, forgetFleet } from './body.ts'
import { type BootLine, parseBootLine } from './cmdline.ts'
import { refreshEtc } from './etc-refresh.ts'
import { decide, type Effect, type Event, type Machine, type Now, type Step } from './machine.ts'
import type { Level, Ports } from './ports.ts'
import { rebootCommand } from './reboot-command.ts'
import { factsOnly, reconcile } from './reconcile.ts'
import { deadlineOf, type Limits } from './states.ts'
import { loadTrust } from './trust.ts'
import { stateCommitted } from './with-state.ts'

/** The one place that carries out what the machine decided: save the record, do the effects, say the lines. */

const REBOOT_MS = 120_000
const ARM_MS = 60_000
/** Behind the health checks' own deadline: only a verdict that does not come at all meets this one. */
const TRY_BACKSTOP_MS = 15_000
/** Behind the longest pause between two checks; and where no channel is followed. */
const REST_BACKSTOP_MS = 300_000
const REST_ALONE_MS = 86_400_000

const BLIND: readonly string[] = ['state-unreadable', 'image-unreadable']

/** The way back must not depend on room for a record: the next start learns these from the boot state. */
const WITHOUT_RECORD: readonly Event['kind'][] = ['begin-rollback', 'armed', 'disarmed']

export class Core {
  readonly ports: Ports
  readonly line: BootLine
  readonly activity: Activity
  readonly #store: RecordStore
  #machine: Machine
  #trusted: TrustedRoots
  #turn: Promise<unknown> = Promise.resolve()
  /** The slot committed last, as the data partition notes it; read once, before anything is written. */
  #noted: Slot | undefined

  private constructor(ports: Ports, line: BootLine, store: RecordStore, trusted: TrustedRoots) {
    this.ports = ports
    this.line = line
    this.#store = store
    this.activity = new Activity(ports, ports.config.agent.stallSeconds * 1000)
    this.#machine = { body: store.body, deadline: deadlineOf(store.body, ports.clock.now(), this.limits) }
    this.#trusted = trusted
  }

  /** Reads records and roots. Never fails for what they hold; fails only off a device, or with a wrong trust anchor. */
  static async open(ports: Ports, options: { readonly readOnly?: boolean } = {}): Promise<Core> {
    const line = parseBootLine(ports.cmdline)
    if (line === undefined) throw deviceErrors.AGENT_NOT_A_DEVICE('/proc/cmdline names no slot')
    const running = {
      number: line.release,
      securityFloor: line.floor,
      // A boot without a boot state, or without the kernel that it wanted, knows of no commit: it starts what there is.
      committed: line.boot === 'committed' || (line.boot === 'fallback' && !BLIND.includes(line.why)),
    }
    const store = await openRecords(ports.data, running, ports.files, options)
    const problems = [...store.problems]
    const trusted = await loadTrust(store, ports.anchor, problems)
    const core = new Core(ports, line, store, trusted)
    core.#noted = await ports.note?.read()
    for (const problem of [...problems, ...core.#given.map(({ code, message }) => `${code}: ${message}`)])
      ports.say(`bistable: ${problem}`)
    if (options.readOnly === true) return core
    const before = core.body
    if (problems.length > 0)
      await core.#note({ what: 'agent', ok: false, code: 'RECORD_INVALID', message: problems.join('; ') })
    // Also when the same was noted before: what is damaged is written anew.
    if (core.body === before && store.needsSave) await core.#saveOrSay(core.body)
    for (const failure of core.#given) await core.#note({ what: 'agent', ok: false, ...failure })
    return core
  }

  get body(): RecordBody {
    return this.#machine.body
  }
  get deadline(): number {
    return this.#machine.deadline
  }
  get trusted(): TrustedRoots {
    return this.#trusted
  }
  get problems(): readonly string[] {
    return [...this.#store.problems, ...this.#given.map(({ code, message }) => `${code}: ${message}`)]
  }
  /** What was wrong before the agent came up: with the settings of the device, and with this start. */
  get #given(): readonly Failure[] {
    const { config, startNotes = [] } = this.ports
    const of = (code: string, said: readonly string[]) =>
      said.length === 0 ? [] : [{ code, message: said.join('; ') }]
    return [...of('CONFIG_INVALID', config.problems ?? []), ...of('START_TROUBLE', startNotes)]
  }
  get busyWith(): { readonly what: string; readonly since: string } | undefined {
    return this.activity.busyWith
  }
  get limits(): Limits {
    const { agent, health } = this.ports.config
    const { soakSeconds, holdSeconds } = this.ports.healthPlan ?? NO_PLAN
    // The last round of a soak takes what the checks take, and the hooks before a commit have time of their own.
    const round = soakSeconds > 0 ? health.deadlineSeconds : 0
    const tryFor = (health.deadlineSeconds + soakSeconds + round + agent.policy.hookSeconds) * 1000 + TRY_BACKSTOP_MS
    const rest = agent.channel === undefined ? REST_ALONE_MS : agent.pollSeconds * 1100 + REST_BACKSTOP_MS
    return { stall: agent.stallSeconds * 1000, arm: ARM_MS, tryFor, hold: holdSeconds * 1000, reboot: REBOOT_MS, rest }
  }

  now(): Now {
    const { clock, bootId } = this.ports
    return { mono: clock.now(), wall: clock.wall().toISOString(), bootId }
  }

  /** Finds out what happened since the last record; run once, when the agent or a command starts. */
  async reconcile(): Promise<void> {
    const { boot, engine } = this.ports
    let state: BootState | undefined
    let bootProblem: Failure | undefined
    let torn = false
    let reason: Awaited<ReturnType<typeof boot.failure>>
    await mendAround(boot, this.line.slot, this.ports.say)
    try {
      state = await boot.read()
      torn = await boot.torn()
      reason = await boot.failure()
    } catch (error) {
      bootProblem = failureFrom(error)
    }
    const onDisk = { a: await engine.storedRelease('a'), b: await engine.storedRelease('b') }
    await this.#inTurn(async () => {
      const facts = {
        body: this.body,
        boot: state,
        bootProblem,
        torn,
        line: this.line,
        reason,
        onDisk: factsOnly(onDisk),
      }
      await this.#settle(reconcile(facts, this.now(), this.limits), this.line.boot !== 'try')
    })
  }

  /** Gives one event to the machine and carries out what it says. */
  async apply(event: Event): Promise<void> {
    const step = () => decide(this.#machine, event, this.now(), this.limits)
    await this.#inTurn(() => this.#settle(step(), WITHOUT_RECORD.includes(event.kind)))
  }

  /** Changes the record outside the machine: outcomes, freshness, trust. */
  async update(change: (body: RecordBody) => RecordBody): Promise<void> {
    await this.#inTurn(() => this.#save(change(this.body)))
  }

  /** Stores newer roots at once: a bundle may revoke keys even when it is not installed. */
  async learnRoots(trusted: TrustedRoots): Promise<void> {
    if (trusted.current.version <= this.#trusted.current.version) return
    await this.#inTurn(async () => {
      const first = trusted.current.version - trusted.envelopes.length + 1
      const roots = trusted.envelopes.map((envelope, i) => ({ version: first + i, envelope }))
      const trust = await this.#store.saveRoots(roots)
      const before = this.#trusted.current.roles.fleet.keys
      const replaced = !trusted.current.roles.fleet.keys.some((key) => before.includes(key))
      // After lost root files nobody knows which keys were in force last: then nothing is forgotten.
      const known = this.body.trust.version <= this.#trusted.current.version
      await this.#save({ ...(replaced && known ? forgetFleet(this.body, trusted.current) : this.body), trust })
      this.#trusted = trusted
    })
    this.say(`bistable: root version ${trusted.current.version} is trusted now`)
  }

  /** As `Activity.exclusive`. */
  exclusive<T>(what: string, outer: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    return this.activity.exclusive(what, outer, work)
  }

  async claimInactive(): Promise<void> {
    await this.ports.boot.write(claim(await this.bootState()))
  }

  /** The boot state, or a fresh one for the running slot when both copies are lost. */
  async bootState(): Promise<BootState> {
    return (await this.ports.boot.read()) ?? freshState(this.line.slot)
  }

  /** @param withoutRecord goes on when the record cannot be written */
  async #settle(step: Step, withoutRecord = false): Promise<void> {
    let { body } = step
    // A full or broken data partition must not keep a bad release alive: giving up a try goes on without a record.
    const anyway = withoutRecord || step.effects.some((effect) => effect.do === 'reboot')
    if (body !== this.body && (await (anyway ? this.#saveOrSay(body) : this.#save(body)))) body = this.body
    const { deadline, rebooting = false } = step
    this.#machine = { body, deadline, rebooting }
    for (const line of step.lines) this.say(line)
    for (const effect of step.effects) await this.#perform(effect)
  }

  async #perform(effect: Effect): Promise<void> {
    try {
      if (effect.do === 'stop-work') {
        this.activity.stop(deviceErrors.AGENT_STALLED(effect.failure.message))
      } else if (effect.do === 'wake') {
        this.activity.wake()
      } else if (effect.do === 'came-up') {
        await this.ports.boot.cameUp(this.line.slot)
        await this.keepNote()
      } else if (effect.do === 'reboot') {
        await this.reboot(effect.forced)
      } else {
        await this.#writeBoot(effect.change)
        if (effect.change === 'commit') {
          const event = { kind: 'boot-committed', securityFloor: this.line.floor } as const
          await this.#settle(decide(this.#machine, event, this.now(), this.limits))
        }
        await this.keepNote()
        if (effect.change === 'commit') await stateCommitted(this.ports, this.line)
      }
    } catch (error) {
      // Kept and said; the deadline of the state moves things on.
      const failure = failureFrom(error)
      this.say(`bistable: ${failure.code}: ${failure.message}`)
      await this.#note({ what: 'agent', ok: false, ...failure })
    }
  }

  async #writeBoot(change: (Effect & { do: 'write-boot' })['change']): Promise<void> {
    const { boot } = this.ports
    const { slot } = this.line
    const state = await boot.read()
    if (state === undefined) {
      await boot.write(change === 'fresh' ? this.#rebuilt() : freshState(change === 'refuse' ? otherSlot(slot) : slot))
    } else if (change === 'commit') {
      // Committed already: a cut or a restart came between the write and the record.
      if (state.trial !== undefined || state.primary !== slot) await boot.write(commit(state, slot))
    } else if (change === 'refuse') {
      if (state.trial !== undefined && state.left > 0) await boot.write(refuse(state, state.trial))
    } else if (change === 'adopt') {
      await boot.write(adopt(state, slot))
    } else if (change === 'retire') {
      if (state.spare && state.primary === slot) await boot.write(retire(state))
    } else if (change === 'renew') {
      await boot.write(renew(state))
      this.say('bistable: one copy of the boot state was damaged and is written anew')
    }
  }

  /** What the lost boot state said, as far as anybody knows; the running slot is primary where nobody does. */
  #rebuilt(): BootState {
    const { body, line, ports } = this
    try {
      return planRepair({
        ...{ state: undefined, told: undefined, proved: {}, lastCommitted: this.#noted },
        ...{ body, running: line, bootId: ports.bootId },
      }).state
    } catch (error) {
      if (!isBistableError(error, 'REPAIR_UNDECIDED')) throw error
      return freshState(line.slot)
    }
  }

  /** Brings the data partition's note of the committed slot up to date. Its failure is said, no more. */
  async keepNote(): Promise<void> {
    const { boot, note, say } = this.ports
    try {
      const state = await boot.read()
      if (state !== undefined) await note?.write(state.primary)
    } catch (error) {
      say(`bistable: the note of the committed slot is not up to date: ${failureFrom(error).message}`)
    }
  }

  /** One line for people, and for whoever watches. */
  say(line: string, level: Level = 'info'): void {
    this.ports.say(line, level)
    this.activity.tell({ line })
  }

  /**
   * Asks the system to go down.
   * @param forced asks the kernel, because init does not do it
   * @throws REBOOT_FAILED
   */
  async reboot(forced = false): Promise<void> {
    const failure = await refreshEtc(this.ports, this.body, this.line)
    if (failure !== undefined) await this.#note({ what: 'etc', ok: false, ...failure })
    this.say('bistable: rebooting')
    const command = await rebootCommand(this.ports, forced)
    const { exit, said } = await this.ports.processes.run(command, 60_000)
    if (exit !== 0) throw deviceErrors.REBOOT_FAILED(`${command.join(' ')} ended with ${exit ?? 'a signal'}: ${said}`)
  }

  async #note(outcome: Omit<Parameters<typeof addOutcome>[1], 'at'>): Promise<void> {
    const last = this.body.outcomes.at(-1)
    // What fails in the same way at every start is kept once.
    if (last?.code === outcome.code && last?.message === clip(outcome.message)) return
    try {
      await this.#save(addOutcome(this.body, { at: this.now().wall, ...outcome }))
    } catch (error) {
      this.say(`bistable: the record cannot be written: ${failureFrom(error).message}`)
    }
  }

  /** @returns false when it is not saved: it counts in memory all the same, and the next save tries again */
  async #saveOrSay(body: RecordBody): Promise<boolean> {
    try {
      await this.#save(body)
      return true
    } catch (error) {
      this.ports.say(`bistable: the record cannot be written: ${failureFrom(error).message}`)
      return false
    }
  }

  async #save(body: RecordBody): Promise<void> {
    await this.#store.save(body)
    this.#machine = { ...this.#machine, body: this.#store.body }
  }

  /** One change at a time: two interleaved saves would lose one of them. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work)
    this.#turn = turn.catch(() => undefined)
    return turn
  }
}

/** What any error looks like in a record. */
export function failureFrom(error: unknown): Failure {
  if (isBistableError(error)) return { code: error.code, message: error.message }
  if (isOutOfMemory(error)) return { code: 'AGENT_MEMORY', message: error.message }
  return { code: 'INTERNAL', message: error instanceof Error ? error.message : String(error) }
}

/** V8 and Node.js when an allocation is refused, and the kernel. */
function isOutOfMemory(error: unknown): error is Error {
  if (!(error instanceof Error)) return false
  return (
    ['ENOMEM', 'ERR_MEMORY_ALLOCATION_FAILED'].includes(systemCode(error) ?? '') ||
    /allocation failed/i.test(error.message)
  )
}
