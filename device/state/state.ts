import { lstat, readdir, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { KiB } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { systemCode, systemReason } from '../../base/errors.ts'
import type { Slot } from '../../bootloader/state.ts'
import type { DeclaredState } from '../../bundle/state.ts'
import type { Processes } from '../agent/ports.ts'
import { taken } from '../space/biggest.ts'
import { MOST_ROOM, ROOM_FILE } from '../space/space.ts'
import { stateErrors } from './errors.ts'
import { parseSnapshot, readFacts, readSlotState, type SlotState, type Snapshot, type StateFacts } from './facts.ts'
import { canRead, snapshotBefore, snapshotsToDrop } from './judge.ts'

/** The agent's part of what outlives the slots: what may be gone back to, and what is not needed any more. */

export interface StatePlaces {
  /** The data partition: "/data". */
  readonly partition: string
  /** "/data/bistable" */
  readonly data: string
  /** "/run/bistable" */
  readonly run: string
}

export interface RollBack {
  readonly slot: Slot
  /** Of the release there, and the root hash of its root file system. */
  readonly release: string
  readonly root: string
  /** The release that runs. */
  readonly running: string
  /** Also if it cannot read the data. */
  readonly force: boolean
  /** Return to the data of before, too. */
  readonly withState: boolean
}

/** What a roll back to the other slot would meet. */
export interface Verdict {
  /** False: refused without `--force` or `--with-state`. */
  readonly reads: boolean
  /** The snapshot that `--with-state` would return to; null: none. */
  readonly snapshot: string | null
}

const BTRFS_MS = 120_000
/** Files looked at to know how much room copies take; more count as more than there is. */
const MAX_FILES = 1_000_000

export class StateOfDevice {
  readonly #places: StatePlaces
  readonly #files: Files
  readonly #processes: Processes

  constructor(places: StatePlaces, files: Files, processes: Processes) {
    this.#places = places
    this.#files = files
    this.#processes = processes
  }

  /** Undefined on a system whose initramfs knows nothing of it. */
  facts(): Promise<StateFacts | undefined> {
    return readFacts(this.#files, this.#places.run)
  }

  inSlot(slot: Slot): Promise<SlotState | undefined> {
    return readSlotState(this.#files, this.#places.data, slot)
  }

  async snapshots(): Promise<readonly Snapshot[]> {
    const names = await readdir(this.#snapshots).catch(() => [])
    return names.map(parseSnapshot).filter((found) => found !== undefined)
  }

  /** Undefined when nothing is known of the state, or of the release in that slot. */
  async verdict(slot: Slot, release: string, running: string): Promise<Verdict | undefined> {
    const facts = await this.facts()
    if (facts === undefined) return undefined
    const there = await this.inSlot(slot)
    const snapshot = snapshotBefore(await this.snapshots(), release, running)?.name ?? null
    // One that never wrote down its schema is from before there were any.
    const schema = there?.release === release ? there.schema : 0
    return { reads: canRead(facts, schema), snapshot }
  }

  /**
   * Before a roll back is armed. With `withState`, the next start of that slot returns to the state of before, and is undone
   * like a migration when it is not committed.
   * @throws STATE_NEWER, STATE_NO_SNAPSHOT, STATE_WRITE_FAILED
   */
  async allowRollBack({ slot, release, root, running, force, withState }: RollBack): Promise<void> {
    const found = await this.verdict(slot, release, running)
    const facts = await this.facts()
    const request = join(this.#places.data, 'state', 'request')
    if (withState) {
      if (found === undefined || found.snapshot === null)
        throw stateErrors.STATE_NO_SNAPSHOT(
          `the data partition is ${facts?.filesystem ?? 'unknown'}; no snapshot of release ${release} from before ${running}`,
        )
      await this.#writing(async () => {
        await this.#files.makeDir(join(this.#places.data, 'state'))
        const line = `${slot} ${release} ${root} ${found.snapshot}\n`
        await writeFileDurably(request, Buffer.from(line), this.#files)
      })
      return
    }
    if (found?.reads === false && !force)
      throw stateErrors.STATE_NEWER(
        `the data have schema ${facts?.schema}, for releases of schema ${facts?.readableBy} and newer; release ${release} is older`,
      )
    // One of a roll back that was not carried out.
    await this.#writing(() => this.#files.remove(request))
  }

  /** The release that runs is committed: there is no way back any more that would put its data back. */
  async committed(slot: Slot, release: string): Promise<void> {
    const folder = join(this.#places.data, 'state')
    await this.#writing(async () => {
      const undo = await this.#files.read(join(folder, 'undo'), 4 * KiB)
      // One of another release could not be undone at this start; the next one tries again.
      if (undo === undefined || !Buffer.from(undo).toString('latin1').startsWith(`${slot} ${release} `)) return
      await this.#files.remove(join(folder, 'undo'))
      await this.#files.syncDir(folder)
      await this.#files.removeTree(join(folder, 'copies'))
    })
  }

  /** Drops snapshots beyond those that stay; returns their names. @throws STATE_WRITE_FAILED */
  async prune({ keep, freePercent }: DeclaredState['snapshots']): Promise<readonly string[]> {
    if ((await this.facts())?.filesystem !== 'btrfs') return []
    const gone: string[] = []
    for (;;) {
      const { bavail, blocks } = await statfs(this.#places.partition)
      const drop = snapshotsToDrop(await this.snapshots(), keep, bavail * 100 < blocks * freePercent)
      if (drop.length === 0) return gone
      for (const { name } of drop) {
        await this.#btrfs('subvolume', 'delete', '--commit-after', join(this.#snapshots, name))
        gone.push(name)
      }
      // Room comes back only when the kernel has cleaned up.
      await this.#btrfs('subvolume', 'sync', this.#places.partition)
    }
  }

  /** Removes the oldest snapshot, for an update that has no room without it; false when there is none. @throws STATE_WRITE_FAILED */
  async dropOldest(): Promise<boolean> {
    if ((await this.facts())?.filesystem !== 'btrfs') return false
    const [oldest] = snapshotsToDrop(await this.snapshots(), Number.POSITIVE_INFINITY, true)
    if (oldest === undefined) return false
    await this.#btrfs('subvolume', 'delete', '--commit-after', join(this.#snapshots, oldest.name))
    await this.#btrfs('subvolume', 'sync', this.#places.partition)
    return true
  }

  /** Bytes of what stands at `paths` of the running system, as its copies would take them. @throws STATE_UNREADABLE */
  async sizeOf(root: string, paths: readonly string[]): Promise<number> {
    let bytes = 0
    let seen = 0
    const visit = async (path: string): Promise<void> => {
      const found = await lstat(path).catch((error: unknown) => {
        if (systemCode(error) === 'ENOENT') return undefined
        throw stateErrors.STATE_UNREADABLE(`${path}: ${systemReason(error)}`, { cause: error })
      })
      if (found === undefined) return
      seen++
      bytes += seen > MAX_FILES ? Number.POSITIVE_INFINITY : found.blocks * 512
      if (found.isDirectory() && seen <= MAX_FILES)
        for (const name of await readdir(path)) await visit(join(path, name))
    }
    for (const path of paths) await visit(join(root, path))
    return bytes
  }

  /** Bytes that a trial finds free: where there are few, the initramfs gives up what is kept for updates. */
  async free(): Promise<number> {
    const { bavail, bsize } = await statfs(this.#places.partition)
    const free = bavail * bsize
    return free < MOST_ROOM ? free + (await taken(join(this.#places.data, ROOM_FILE))).bytes : free
  }

  get #snapshots(): string {
    return join(this.#places.partition, 'snapshots')
  }

  async #btrfs(...args: string[]): Promise<void> {
    const { exit, said } = await this.#processes.run(['btrfs', ...args], BTRFS_MS)
    if (exit !== 0) throw stateErrors.STATE_WRITE_FAILED(`btrfs ${args.join(' ')}: ${said.trim() || `exit ${exit}`}`)
  }

  async #writing(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (cause) {
      throw stateErrors.STATE_WRITE_FAILED(`${this.#places.data}/state: ${(cause as Error).message}`, { cause })
    }
  }
}
