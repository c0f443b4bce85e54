import { createHash } from 'node:crypto'
import { dirname } from 'node:path'
import type { Sha256 } from '../../base/bytes.ts'
import { freshState, onBoot, type Starts } from '../../bootloader/machine.ts'
import type { BootFailure } from '../../bootloader/reason.ts'
import type { BootState, Slot } from '../../bootloader/state.ts'
import { ASSIGNMENT_PAYLOAD_TYPE, type AssignmentStatement, encodeAssignment } from '../../bundle/assignment.ts'
import { encodeFreshness, FRESHNESS_PAYLOAD_TYPE, type FreshnessStatement } from '../../bundle/freshness.ts'
import { type HealthPlan, NO_PLAN } from '../../bundle/health-plan.ts'
import { checkSystem, type System } from '../../bundle/system.ts'
import type { AuthenticAssignment, BundleHead, ReleaseStatement } from '../../bundle/types.ts'
import type { Unlocking } from '../../device/addons/unlock.ts'
import type { AddonPort } from '../../device/agent/addons.ts'
import { Core } from '../../device/agent/core.ts'
import { runAgent } from '../../device/agent/loop.ts'
import type { Engine, Ports, ProcessResult, StoredRelease, Surroundings } from '../../device/agent/ports.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { signStatement } from '../../keys/statement.ts'
import { ASSIGNMENT, STATEMENT } from '../bundle/fixture.ts'
import { signedRoot, signer } from '../keys/helpers.ts'
import { MemoryFiles } from './memory-files.ts'

/**
 * A device without hardware: the real agent and the real boot decisions, over a disk, a boot state and a clock in
 * memory. A power cut ends everything at one chosen change of disk or boot state.
 */

export interface Release {
  readonly counter: number
  readonly version?: string
  readonly product?: string
  readonly hardware?: string
  readonly securityFloor?: number
  /** Never reaches the agent. */
  readonly panics?: boolean
  /** The initramfs gives up, and says so. */
  readonly initramfs?: string
  /** What its health check answers, by the number of the run. Healthy without it. */
  readonly health?: (run: number) => Partial<ProcessResult> | 'hangs'
}

export class PowerCut extends Error {}

/** One key of each role: curve arithmetic is most of the time of a boot here. */
export const ANCHOR = await signedRoot({ root: [1], threshold: 1 }, [1])
const CHANNEL = 'http://updates/channels/stable.json'

export class World {
  files = new MemoryFiles()
  boot: BootState | undefined = freshState('a')
  starts: Starts = { a: 0, b: 0, up: 'a' }
  failure: BootFailure | undefined
  /** One copy of the boot state is damaged. */
  torn = false
  /** What its bootloader can count. */
  maxTries = 9
  deviceId: string | undefined = 'device-1'
  /** Set false to make the bootloader unable to write. */
  counterWritable = true
  readonly slots: Record<Slot, Release | 'partial'>
  readonly stored: Partial<Record<Slot, StoredRelease>> = {}
  readonly published = new Map<string, Release>()
  /** Assignments inside bundles, by address. */
  readonly carried = new Map<string, AuthenticAssignment>()
  readonly web = new Map<string, Uint8Array | Error>()
  healthPlan: HealthPlan = NO_PLAN
  addons: AddonPort | undefined
  unlocking: Unlocking | undefined
  /** More fields of system.json. */
  systemMore: Record<string, unknown> = {}
  agentConfig: Record<string, unknown> = { channel: CHANNEL, pollSeconds: 100, apply: 'reboot' }
  synchronised = true
  /** Undefined: nobody can put the clock forward. */
  forward: Ports['clock']['forward']
  wall = Date.parse('2026-11-21T12:00:00Z')
  mono = 0
  lines: string[] = []
  boots: string[] = []
  changes = 0
  cutAt = Number.POSITIVE_INFINITY
  dead = false
  rebootAsked = false
  fetches = 0
  healthRuns = 0
  bootCount = 0
  /** Called while an install moves bytes. */
  onFill: (signal: AbortSignal) => Promise<void> = async () => undefined
  /** Instead of the one that only pretends. */
  engine: ((files: MemoryFiles, data: string) => Engine) | undefined
  /** Lets everything happen that needs no time. */
  settle: () => Promise<void> = flush
  /** Ends a power-on early. */
  done: () => boolean = () => false
  /** Called before every change of a file; may throw. */
  onFileChange: (op: string, path: string) => void = () => undefined
  /** Called before a file is written. */
  onWrite: (path: string) => Promise<void> = async () => undefined
  /** By whole path, for example `/etc/bistable/hooks.d/pre-check/10-a`. */
  readonly hooks = new Map<string, () => Partial<ProcessResult> | 'hangs'>()
  readonly hookRuns: { readonly hook: string; readonly env: Readonly<Record<string, string>> }[] = []
  surroundings: Surroundings | undefined
  /** What outlives the slots; undefined: an initramfs that says nothing of it. */
  state: Ports['state']
  feeds: number[] = []
  /** Signs of life for the service manager. */
  beats: number[] = []
  onBeat: () => Promise<void> = async () => undefined
  rebootArgument: string | undefined
  watchdogSeconds = 60
  disarmed = 0
  core: Core | undefined
  /** The clock stands while this is so. */
  held = false
  #timers: { at: number; wake: () => void }[] = []
  #booted: { readonly cmdline: string; readonly release: Release } | undefined

  constructor(installed: Release = { counter: 2 }) {
    this.slots = { a: installed, b: 'partial' }
    this.stored = { a: storedOf(installed) }
  }

  /** Counts one change of persistent state; the chosen one does not happen any more, nor anything after it. */
  change(): void {
    if (this.dead || ++this.changes === this.cutAt) {
      this.dead = true
      throw new PowerCut('power cut')
    }
  }

  async publish(release: Release, plan: Partial<FreshnessStatement> = {}, by: number[] = [21]): Promise<void> {
    const path = `bundles/${release.counter}.bundle`
    const statement: FreshnessStatement = {
      type: 'freshness',
      product: 'demo',
      channel: 'stable',
      number: { epoch: 0, counter: release.counter },
      release: digestOf(release),
      path,
      size: 1000,
      rootVersion: 1,
      issued: new Date(this.wall).toISOString().replace(/\.\d+Z/, 'Z'),
      expires: new Date(this.wall + 86_400_000).toISOString().replace(/\.\d+Z/, 'Z'),
      ...plan,
    }
    this.published.set(`http://updates/${path}`, release)
    const envelope = await signStatement(FRESHNESS_PAYLOAD_TYPE, encodeFreshness(statement), by.map(signer))
    this.web.set(CHANNEL, encodeEnvelope(envelope))
  }

  /** Publishes `assignments/device-1.json` (or another device's), and the release that it names. */
  async assign(release: Release, plan: Partial<AssignmentStatement> = {}, by: number[] = [21]): Promise<void> {
    const path = `bundles/${release.counter}.bundle`
    const statement = assignmentOf(release, { bundle: { path, size: 1000 }, ...plan })
    this.published.set(`http://updates/${path}`, release)
    const envelope = await signStatement(ASSIGNMENT_PAYLOAD_TYPE, encodeAssignment(statement), by.map(signer))
    this.web.set('http://updates/assignments/device-1.json', encodeEnvelope(envelope))
  }

  /** One power-on until the agent asks for a reboot, the power is cut, or `seconds` have passed. */
  async powerOn(seconds = 1000, during: (core: Core) => Promise<void> = async () => undefined): Promise<void> {
    this.dead = false
    this.rebootAsked = false
    this.bootCount++
    this.#timers = []
    const decision = onBoot(this.boot, {
      starts: this.starts,
      writable: this.counterWritable,
      loadable: { a: true, b: true },
    })
    if (decision.newState !== undefined) this.boot = decision.newState
    const slot = decision.slot ?? 'a'
    this.starts = { ...this.starts, [slot]: Math.min(9, this.starts[slot] + 1) }
    const release = this.slots[slot]
    this.boots.push(`${slot}${decision.boot === 'try' ? '?' : ''}${release === 'partial' ? '!' : ''}`)
    if (release === 'partial') throw new Error(`the bootloader started slot ${slot}, which is being written`)
    if (release.panics === true) return
    if (release.initramfs !== undefined) {
      this.failure = { slot, stage: 'verity', text: release.initramfs }
      return
    }
    const floor = release.securityFloor ?? 0
    const cmdline = `bistable.floor=0.${floor} bistable.slot=${slot} bistable.release=0.${release.counter} bistable.boot=${decision.boot} bistable.left=${decision.left} bistable.why=${decision.why}`
    this.#booted = { cmdline, release }
    await this.#agent(await this.ports(cmdline, release), seconds, during)
  }

  /** The agent alone was ended, and init starts it again: the same boot goes on. */
  async restart(seconds = 1000, during: (core: Core) => Promise<void> = async () => undefined): Promise<void> {
    if (this.#booted === undefined) throw new Error('nothing was booted yet')
    this.dead = false
    this.rebootAsked = false
    this.#timers = []
    await this.#agent(await this.ports(this.#booted.cmdline, this.#booted.release), seconds, during)
  }

  /** Boots until nothing more is asked for, at most `most` times. */
  async run(most = 10, seconds = 150): Promise<void> {
    for (let n = 0; n < most; n++) {
      await this.powerOn(seconds)
      const slot = this.boots.at(-1)?.[0] as Slot
      const release = this.slots[slot]
      const resets = release !== 'partial' && (release.panics === true || release.initramfs !== undefined)
      if (!this.rebootAsked && !this.dead && !resets) return
    }
  }

  async #agent(ports: Ports, seconds: number, during: (core: Core) => Promise<void>): Promise<void> {
    const stop = new AbortController()
    const work = (async () => {
      const core = await Core.open(ports)
      this.core = core
      await core.reconcile()
      void during(core).catch((error: unknown) => {
        if (!(error instanceof PowerCut)) this.lines.push(`during: ${error}`)
      })
      await runAgent(core, stop.signal)
    })().catch((error: unknown) => {
      if (!this.dead) throw error
    })
    let ended = false
    const over = () => {
      ended = true
    }
    work.then(over, over)
    const end = this.mono + seconds * 1000
    await this.settle()
    while (!this.dead && !this.rebootAsked && !ended && !this.done() && this.mono < end) {
      // Real files take real time, which this clock knows nothing of.
      while (this.held && !ended) await new Promise((later) => setTimeout(later, 1))
      this.#timers.sort((x, y) => x.at - y.at)
      const next = this.#timers.shift()
      if (next === undefined) break
      this.wall += Math.max(0, next.at - this.mono)
      this.mono = Math.max(this.mono, next.at)
      next.wake()
      await this.settle()
    }
    stop.abort()
    await this.settle()
    for (const timer of this.#timers) timer.wake()
    await work
  }

  /** Waits on this world's clock. */
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const stop = () => reject(signal?.reason)
      if (signal?.aborted) return stop()
      signal?.addEventListener('abort', stop, { once: true })
      const wake = () => {
        signal?.removeEventListener('abort', stop)
        resolve()
      }
      this.#timers.push({ at: this.mono + ms, wake })
    })
  }

  async ports(cmdline: string, release: Release): Promise<Ports> {
    const files = new MemoryFiles(this.files.content)
    files.onChange = (op, path) => {
      this.onFileChange(op, path)
      this.change()
    }
    const write = files.write.bind(files)
    files.write = async (path, bytes) => {
      await this.onWrite(path)
      await write(path, bytes)
    }
    this.files = files
    return {
      files,
      data: '/data',
      clock: {
        now: () => this.mono,
        wall: () => new Date(this.wall),
        sleep: (ms, signal) => this.sleep(ms, signal),
        synchronised: async () => this.synchronised,
        ...(this.forward && { forward: this.forward }),
      },
      boot: {
        read: async () => this.boot,
        write: async (state) => {
          this.change()
          this.boot = state
          this.torn = false
        },
        failure: async () => this.failure,
        cameUp: async (slot) => {
          this.change()
          this.failure = undefined
          this.starts = { a: 0, b: 0, up: slot }
        },
        torn: async () => this.torn,
        rebootArgument: async () => this.rebootArgument,
        repairer: () => Promise.reject(new Error('not in this world')),
        describe: async () => ({ name: 'memory', place: 'memory', maxTries: this.maxTries }),
      },
      engine: this.engine?.(files, '/data') ?? this.plainEngine(),
      processes: {
        glob: async (pattern) => (pattern.includes('/hooks.d/') ? this.hooksIn(pattern) : ['/health/app']),
        run: async ([program], ms, signal, env) => {
          if (program === 'reboot') {
            this.rebootAsked = true
            return { exit: 0, timedOut: false, said: '' }
          }
          const hook = this.hooks.get(program)
          if (hook !== undefined) this.hookRuns.push({ hook: program, env: env ?? {} })
          const answer = (hook === undefined ? release.health?.(++this.healthRuns) : hook()) ?? {}
          if (answer !== 'hangs') return { exit: 0, timedOut: false, said: '', ...answer }
          await new Promise<void>((resolve) => {
            this.#timers.push({ at: this.mono + ms, wake: resolve })
            signal?.addEventListener('abort', () => resolve(), { once: true })
          })
          return { exit: undefined, timedOut: true, said: '' }
        },
      },
      config: this.system(),
      healthPlan: this.healthPlan,
      addons: this.addons,
      unlocking: this.unlocking,
      deviceId: this.deviceId,
      anchor: ANCHOR,
      cmdline,
      bootId: `boot-${this.bootCount}`,
      pid: 1,
      systemd: false,
      watchdog: {
        feed: async () => {
          this.feeds.push(this.mono)
        },
        disarm: async () => {
          this.disarmed++
        },
      },
      beat: () => {
        this.beats.push(this.mono)
        return this.onBeat()
      },
      random: () => 0.5,
      ...(this.state && { state: this.state }),
      ...(this.surroundings === undefined ? {} : { surroundings: this.surroundings }),
      say: (line) => {
        this.lines.push(line)
      },
    }
  }

  hooksIn(pattern: string): readonly string[] {
    return [...this.hooks.keys()].filter((path) => `${dirname(path)}/*` === pattern).sort()
  }

  system(): System {
    const checked = checkSystem({
      product: 'demo',
      hardware: ['qemu-x86_64'],
      health: { deadlineSeconds: 60, required: ['/health/*'], wanted: [] },
      agent: this.agentConfig,
      watchdogSeconds: this.watchdogSeconds,
      ...this.systemMore,
    })
    if ('problems' in checked) throw new Error(checked.problems.join())
    return checked.system
  }

  /** One that only pretends. */
  plainEngine(): Engine {
    return {
      open: async (source) => {
        const release = this.published.get(source)
        if (release === undefined) throw new Error(`nothing at ${source}`)
        return { name: source, size: 1000, read: () => nothing(), close: async () => undefined }
      },
      head: async (source, trusted) => {
        const release = this.published.get(source.name)
        if (release === undefined) throw new Error('gone')
        const head = { statement: statementOf(release), digest: digestOf(release), trusted, size: 1000 }
        return { ...head, assignment: this.carried.get(source.name) } as BundleHead
      },
      verifyWhole: async (_source, _head, _signal, onProgress) => onProgress(1, 1),
      install: async (call) => {
        const slot = call.running === 'a' ? 'b' : 'a'
        const release = this.published.get(call.source.name)
        if (release === undefined) throw new Error('gone')
        await call.invalidate()
        if (this.boot?.trial !== undefined || this.boot?.spare === true) throw new Error('slot is still named')
        this.change()
        delete this.stored[slot]
        this.slots[slot] = 'partial'
        for (let done = 0; done < 3; done++) {
          this.fetches++
          call.onProgress({ phase: 'fill', image: 'rootfs', done, total: 3, fetched: done })
          await this.onFill(call.signal)
          call.signal.throwIfAborted()
        }
        this.change()
        this.slots[slot] = release
        this.change()
        this.stored[slot] = storedOf(release)
        await call.beforeArm()
        await call.arm()
        const images = { kept: 0, reused: 0, fetched: 3 }
        return { images: { boot: images, rootfs: images }, fetched: 3, freshness: 'direct' }
      },
      plan: async ({ source }) => ({
        source: source.name,
        images: [],
        head: 0,
        attachments: 0,
        patch: 0,
        hints: 0,
        total: 3,
      }),
      slotFault: async () => undefined,
      storedRelease: async (slot) => this.stored[slot],
      fetchSmall: async (url) => {
        const found = this.web.get(url.href)
        if (found instanceof Error) throw found
        return found
      },
    }
  }
}

async function* nothing(): AsyncGenerator<Uint8Array> {}

export function digestOf(release: Release): Sha256 {
  const name = `${release.counter} ${release.version ?? ''}`
  return createHash('sha256').update(name).digest('hex') as Sha256
}

export function assignmentOf(release: Release, plan: Partial<AssignmentStatement> = {}): AssignmentStatement {
  return { ...ASSIGNMENT, release: digestOf(release), number: { epoch: 0, counter: release.counter }, ...plan }
}

function statementOf(release: Release): ReleaseStatement {
  return {
    ...STATEMENT,
    product: release.product ?? 'demo',
    hardware: [release.hardware ?? 'qemu-x86_64'],
    number: { epoch: 0, counter: release.counter },
    version: release.version ?? `1.${release.counter}`,
    securityFloor: { epoch: 0, counter: release.securityFloor ?? 0 },
  }
}

function storedOf(release: Release): StoredRelease {
  const statement = statementOf(release)
  const { number, version } = statement
  return { facts: { digest: digestOf(release), number, version, committed: false }, statement }
}

/** Lets every promise that can move on do so. */
async function flush(): Promise<void> {
  for (let n = 0; n < 4; n++) await new Promise((resolve) => setImmediate(resolve))
}
