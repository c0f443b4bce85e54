import type { Files } from '../../base/durable.ts'
import type { ByteSource } from '../../base/source.ts'
import type { BackendFacts } from '../../bootloader/backend.ts'
import type { BootReason } from '../../bootloader/reason.ts'
import type { BootRepairer } from '../../bootloader/repair.ts'
import type { BootState, Slot } from '../../bootloader/state.ts'
import type { Policy } from '../../bundle/agent-policy.ts'
import type { DeltaHead } from '../../bundle/delta/head.ts'
import type { HealthPlan } from '../../bundle/health-plan.ts'
import type { HintedRelease, OpenHints } from '../../bundle/hints/format.ts'
import type { BundleHead, ReleaseStatement } from '../../bundle/types.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import type { Unlocking } from '../addons/unlock.ts'
import type { DeviceConfig } from '../config.ts'
import type { Brokers } from '../doors/brokers.ts'
import type { Probes } from '../health/probes.ts'
import type { Journal } from '../install/journal.ts'
import type { InstallPlan } from '../install/plan.ts'
import type { InstallProgress, InstallResult } from '../install/types.ts'
import type { Power } from '../policy/surroundings.ts'
import type { SlotFacts } from '../records/record.ts'
import type { Space } from '../space/space.ts'
import type { StateOfDevice } from '../state/state.ts'
import type { Sticks } from '../usb/sticks.ts'
import type { AddonPort } from './addons.ts'
import type { EtcWork } from './with-etc.ts'

/** Everything the agent touches outside itself. `real.ts` has the real ones; tests bring their own disk and clock. */

export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  wall(): Date
  /** Resolves after `ms`; rejects with the signal's reason when aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
  /** Whether `wall` was set from a trusted source in this boot. */
  synchronised(): Promise<boolean>
  /** Undefined where the clock is never put forward. */
  readonly forward?: ForwardClock
}

/** Puts a clock that was lost forward, and knows afterwards whose time it shows. */
export interface ForwardClock {
  /** @param to milliseconds since 1970 @returns why the clock could not be set, for people */
  set(to: number): Promise<string | undefined>
  /** True while the clock has only run on since `set` in this boot: it is as wrong as it was then. */
  untouched(): Promise<boolean>
}

/** The bootloader's backend, opened for each use so that nothing is held between two. */
export interface BootPort {
  /** Undefined when neither copy is valid. Fails when the partition cannot be read. */
  read(): Promise<BootState | undefined>
  write(state: BootState): Promise<void>
  failure(): Promise<BootReason['failure']>
  cameUp(slot: Slot): Promise<void>
  /** True when one copy counts and the other cannot be read: the next write heals it. */
  torn(): Promise<boolean>
  describe(): Promise<BackendFacts>
  /** What the reboot has to hand to the firmware, for a bootloader that has to be told (`BootBackend`). */
  rebootArgument(): Promise<string | undefined>
  /** Throws REPAIR_UNSUPPORTED where the boot state cannot be repaired from the running system. */
  repairer(): Promise<BootRepairer>
}

/** The data partition's note of the slot that was committed last. */
export interface NotePort {
  read(): Promise<Slot | undefined>
  write(slot: Slot): Promise<void>
}

export interface ProcessResult {
  /** Undefined when it was ended by a signal or the time limit. */
  readonly exit: number | undefined
  readonly timedOut: boolean
  /** The last 400 bytes of what it said, for people. */
  readonly said: string
}

export interface Processes {
  /** Runs a program without a shell; ends it, and its group, after `ms`. Never rejects. */
  run(
    command: readonly [string, ...string[]],
    ms: number,
    signal?: AbortSignal,
    /** Added to the environment. */
    env?: Readonly<Record<string, string>>,
  ): Promise<ProcessResult>
  /** Executable files that a glob like `/dir/*` names, sorted. */
  glob(pattern: string): Promise<readonly string[]>
}

/** What is known of the content of a slot, from the data partition. */
export interface StoredRelease {
  readonly facts: SlotFacts
  readonly statement: ReleaseStatement
}

export interface InstallCall {
  readonly source: ByteSource
  readonly head: BundleHead
  readonly running: Slot
  /** See `InstallRequest`. */
  readonly cheapSource: boolean
  readonly signal: AbortSignal
  readonly onProgress: (progress: InstallProgress) => void
  readonly journal?: Journal
  /** See `InstallRequest`. */
  readonly maxBytes?: number
  /** Paths of bundles whose chunks may serve. */
  readonly reuse?: readonly string[]
  readonly patch?: OfferedPatch
  readonly hints?: OfferedHints | undefined
  readonly invalidate: () => Promise<void>
  readonly beforeArm: () => Promise<void>
  readonly arm: () => Promise<void>
}

/** A patch file that may lead from the running release to the wanted one. */
export interface OfferedPatch {
  readonly source: ByteSource
  readonly head: DeltaHead
  /** Told why it, or a part of it, is not used. */
  readonly onRefused: (error: Error) => void
}

/** The hints beside a bundle, which may spare most of its chunk indexes and inventory. */
export interface OfferedHints {
  /**
   * Their tables, fetched at the first call. Undefined: there are none, or they were refused, which was told; or they would
   * not be worth a request.
   * @param spares bytes that are fetched without them
   */
  of(release: HintedRelease, spares: number): Promise<OpenHints | undefined>
  /** Told before more of them is fetched. */
  readonly told: (bytes: number) => void
  /** Told why they, or a part of them, are not used. */
  readonly onRefused: (error: Error) => void
  /** Fetched of them so far. */
  readonly bytes: number
}

/** What may spare chunk indexes and inventory of a bundle. */
export interface Spare {
  readonly running: Slot
  readonly offered?: OfferedPatch | undefined
  readonly hints?: OfferedHints | undefined
}

export type PlanCall = Pick<
  InstallCall,
  'source' | 'head' | 'running' | 'signal' | 'onProgress' | 'maxBytes' | 'reuse' | 'patch' | 'hints'
>

/** Bundles and slots: the rooms that move bytes. */
export interface Engine {
  /** Opens a path or an address. */
  open(source: string, signal: AbortSignal): Promise<ByteSource>
  /** @param spare what may have chunk indexes, which then need not be read */
  head(source: ByteSource, trusted: TrustedRoots, signal: AbortSignal, spare?: Spare): Promise<BundleHead>
  /** All that stands behind the head. */
  verifyWhole(
    source: ByteSource,
    head: BundleHead,
    signal: AbortSignal,
    onProgress: (done: number, total: number) => void,
  ): Promise<void>
  install(call: InstallCall): Promise<InstallResult>
  /** What `install` would fetch from where. Changes nothing. */
  plan(call: PlanCall): Promise<InstallPlan>
  /** What is wrong with a slot, or undefined when it holds exactly these images. */
  slotFault(slot: Slot, statement: ReleaseStatement, signal: AbortSignal): Promise<string | undefined>
  storedRelease(slot: Slot): Promise<StoredRelease | undefined>
  /** The merge of /etc; undefined where there is none. */
  readonly etc?: EtcWork
  /** Fetches a small file; fails above `limit` bytes. Undefined when the server has none. */
  fetchSmall(url: URL, limit: number, signal: AbortSignal): Promise<Uint8Array | undefined>
}

/** Priorities of the journal: what an operator must see, what may matter, and the rest. */
export type Level = 'error' | 'warning' | 'info'

export interface Surroundings {
  /** Interfaces that carry a default route, best first. */
  links(): Promise<readonly string[]>
  power(): Promise<Power>
  /** Lowers the process's claim on processor and disk; the returned function gives it back. Never rejects. */
  calm(wanted: Pick<Policy['download'], 'nice' | 'io'>): Promise<() => Promise<void>>
}

export interface Watchdog {
  feed(): Promise<void>
  /** Tells the hardware that the agent stops on purpose. */
  disarm(): Promise<void>
}

export interface Ports {
  readonly files: Files
  /** /data/bistable */
  readonly data: string
  readonly clock: Clock
  readonly boot: BootPort
  readonly note?: NotePort
  readonly engine: Engine
  /** What outlives the slots; undefined where nothing is known of it. */
  readonly state?: Pick<StateOfDevice, 'facts' | 'snapshots' | 'verdict' | 'allowRollBack' | 'committed' | 'prune'>
  /** Room that is kept for updates; undefined: none is. */
  readonly space?: Pick<Space, 'keep'>
  readonly processes: Processes
  readonly config: DeviceConfig
  /** What this start had to do without, in the initramfs's words. */
  readonly startNotes?: readonly string[]
  /** health.json of the image; undefined: there is none. */
  readonly healthPlan?: HealthPlan
  /** Undefined where nothing is put over /usr. */
  readonly addons?: AddonPort | undefined
  /** Undefined where /usr cannot be unlocked. */
  readonly unlocking?: Unlocking | undefined
  /** Checks over the network; undefined: none can be asked. */
  readonly probes?: Probes
  /** What assignments call this device; undefined: it has no id, and none is for it. */
  readonly deviceId?: string | undefined
  /** Ties to brokers, for the agent's own session; its doors have them already. Undefined: none. */
  readonly brokers?: Brokers
  /** Before every path of the running system: "" on a device. */
  readonly root?: string
  /** The device's rules for merging /etc: "/etc/bistable/etc.json". */
  readonly etcRules?: string
  readonly anchor: Uint8Array
  readonly cmdline: string
  readonly bootId: string
  /** Undefined where no stick is ever looked for. */
  readonly sticks?: Sticks | undefined
  readonly pid: number
  /** True when systemd runs the system. */
  readonly systemd: boolean
  /** Undefined when none is configured, or another program holds it. */
  readonly watchdog: Watchdog | undefined
  /** Tells the service manager that the agent is alive; undefined: nobody wants to hear. Never rejects. */
  readonly beat?: (() => Promise<void>) | undefined
  /** 0 .. 1. */
  readonly random: () => number
  /** One line for people, to standard output and the console. */
  readonly say: (line: string, level?: Level) => void
  /** Gives back memory that a check took; called when nothing is under way any more. */
  readonly relax?: (() => void) | undefined
  /** Link and power; undefined: unknown, and no policy waits for them. */
  readonly surroundings?: Surroundings
}
