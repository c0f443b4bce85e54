import { randomFillSync } from 'node:crypto'
import { lstat, open, readdir, readFile, readlink, rm, stat, statfs, truncate } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { humanBytes, KiB, MiB, roundUp } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { printable } from '../../base/printable.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { discard } from '../etc/discard.ts'
import { installErrors } from '../install/errors.ts'
import { keepReserve, RESERVE_FILE } from '../records/reserve.ts'
import { biggest, type Taken, taken } from './biggest.ts'

/**
 * Room for an update on the data partition, which the system's own programs may fill at any time: a device whose logs have
 * filled it must still take the release that mends them.
 *
 * A file of real blocks (`room`) is kept while nothing is installed. An install that finds no room gives up, in this order,
 * what is void already, reports, as much of that file as it lacks, and snapshots; the initramfs gives up the file for a
 * trial that finds no room (`give_room`). The agent makes it again when that is over.
 *
 * btrfs keeps small files and all names among its tables, which have chunks of their own: where those are full, nothing can be
 * written, however much statfs says is free. There small files (`small/`) are kept besides, which stand in the tables.
 */

export const ROOM_FILE = 'room'
export const SMALL_FOLDER = 'small'
/** Each small enough to stand among the tables: 7.3 MiB of them in all, where one rename reserves some 3 (measured, Linux 6). */
const SMALL_FILES = 3072
const SMALL_BYTES = 1900
const LEAST_ROOM = 4 * MiB
/** `give_room` of initramfs/init has this figure, too. */
export const MOST_ROOM = 16 * MiB
const ROOM_PART = 32
/** Taken and given in whole ones. */
const STEP = 64 * KiB
/** What the file is never made of: the last room belongs to who wants it now. */
const SPARE = 256 * KiB

/** What the start of a trial writes down of a release's state and paths. */
const START: Taken = { bytes: 256 * KiB, files: 32 }
/** The largest /etc that is merged: where this is free, nothing has to be counted. */
const MOST_ETC: Taken = { bytes: 160 * MiB, files: 20_000 }

/** linux/magic.h */
const BTRFS = 0x9123683e
const EXT4 = 0xef53
const TMPFS = 0x01021994

/** Size of the file on a partition of `total` bytes. Pure. */
export function roomBytes(total: number): number {
  return Math.min(MOST_ROOM, Math.max(LEAST_ROOM, Math.floor(total / ROOM_PART / MiB) * MiB))
}

export interface Space {
  /**
   * Before anything of a slot is given up: can what an install keeps there, the merge of /etc and the start of the trial
   * have their room?
   * @throws INSTALL_NO_SPACE
   */
  require(kept: Taken, slot: Slot): Promise<void>
  /** From now on what is kept for the release in this slot is void. */
  begin(slot: Slot): void
  /**
   * Makes room, now.
   * @param first gives up what the caller knows to be void
   * @throws INSTALL_NO_SPACE
   */
  make(wanted: Taken, first?: () => Promise<void>): Promise<void>
  /** The install has ended. Never fails. */
  end(): Promise<void>
  /** Takes what is kept for updates, as far as it can be had. Never fails. */
  keep(): Promise<void>
}

/** Where nobody counts. */
export const UNLIMITED: Space = {
  require: async () => undefined,
  begin: () => undefined,
  make: async () => undefined,
  end: async () => undefined,
  keep: async () => undefined,
}

export interface SpaceEdge {
  /** The data partition: "/data". */
  readonly partition: string
  /** "/data/bistable" */
  readonly data: string
  /** Waits until the file system has carried out what was removed. */
  readonly flush: () => Promise<unknown>
  /** Removes the oldest snapshot of the state; false when there is none. */
  readonly dropSnapshot: () => Promise<boolean>
}

export class DataSpace implements Space {
  readonly #edge: SpaceEdge
  readonly #room: string
  readonly #small: string
  #void: Slot | undefined
  #installing = false
  #gave = false

  constructor(edge: SpaceEdge) {
    this.#edge = edge
    this.#room = join(edge.data, ROOM_FILE)
    this.#small = join(edge.data, SMALL_FOLDER)
  }

  async require(kept: Taken, slot: Slot): Promise<void> {
    this.#installing = true
    if (holds(await this.#free(), sum(kept, START, MOST_ETC))) return
    const { partition, data } = this.#edge
    const wanted = sum(kept, START, await taken(join(partition, 'etc', otherSlot(slot))))
    const given = [...this.#voidEtc(slot), join(data, 'slots', slot), this.#room]
    const spare = sum(...(await Promise.all(given.map(taken))))
    while (!holds(sum(await this.#free(), spare), wanted))
      if (!(await this.#dropSnapshot())) throw await this.#none(wanted, spare)
  }

  begin(slot: Slot): void {
    this.#void = slot
  }

  async make(wanted: Taken, first?: () => Promise<void>): Promise<void> {
    const { data, flush } = this.#edge
    const ways = [
      async () => first?.(),
      async () => {
        for (const path of this.#void === undefined ? [] : this.#voidEtc(this.#void)) await discard(path)
      },
      async () => {
        for (const name of ['etc-report.json', 'drift.json']) await rm(join(data, name), { force: true })
      },
      async () => this.#give(wanted.bytes),
    ]
    for (const way of ways) {
      if (holds(await this.#free(), wanted)) return
      await way()
      await flush()
    }
    while (!holds(await this.#free(), wanted))
      if (!(await this.#dropSnapshot())) throw await this.#none(wanted, NOTHING)
  }

  async end(): Promise<void> {
    this.#void = undefined
    this.#installing = false
    if (this.#gave) await this.keep()
    this.#gave = false
  }

  async keep(): Promise<void> {
    // What was made free would be gone again.
    if (this.#installing) return
    try {
      const { type, bavail, blocks, bsize } = await statfs(this.#edge.data)
      // That would be memory.
      if (type === TMPFS) return
      await keepReserve(nodeFiles, join(this.#edge.data, RESERVE_FILE))
      // As far as it goes.
      if (type === BTRFS) await fillFolder(this.#small).catch(() => undefined)
      const have = await sizeOf(this.#room)
      const more = Math.min(roomBytes(blocks * bsize) - have, bavail * bsize - SPARE)
      if (more < STEP) return
      // A file system that allocates late finds out at the flush: what has no blocks is no room.
      await append(this.#room, more).catch(() => truncate(this.#room, have))
    } catch {
      // Without it there is one guarantee less, no more.
    }
  }

  /** Cuts the file by what lacks, and no more: what is free, anybody may take. */
  async #give(bytes: number): Promise<void> {
    const have = await sizeOf(this.#room)
    const free = await this.#free()
    // btrfs gives back an extent when nothing of it is left.
    if (free.type === BTRFS) return await this.giveAll()
    const lacking = bytes - free.bytes
    if (have === 0 || lacking <= 0) return
    const left = have - roundUp(lacking, STEP)
    this.#gave = true
    if (left > 0) await truncate(this.#room, left)
    else await rm(this.#room, { force: true })
  }

  /** All at once: for a record that finds no room even in its reserve. */
  async giveAll(): Promise<void> {
    this.#gave = true
    await rm(this.#room, { force: true })
    await rm(this.#small, { recursive: true, force: true })
    await this.#edge.flush()
  }

  async #dropSnapshot(): Promise<boolean> {
    const dropped = await this.#edge.dropSnapshot()
    if (dropped) await this.#edge.flush()
    return dropped
  }

  /** What stands of the /etc of a slot whose release is void. */
  #voidEtc(slot: Slot): readonly string[] {
    const etc = join(this.#edge.partition, 'etc', slot)
    return [etc, `${etc}.merging`, `${etc}.old`, `${etc}.new`]
  }

  async #free(): Promise<Taken & { readonly type: number }> {
    const { type, bavail, bfree, bsize, files, ffree } = await statfs(this.#edge.data)
    const kept = type === EXT4 ? await reservedBlocks(this.#edge.data) : undefined
    // What ext4 keeps for root is ours; btrfs, which counts each copy in bfree, has no number of files.
    const bytes = (kept === undefined ? bavail : bfree - kept) * bsize
    // btrfs says so of room that it has not carried out yet, and refuses a write there.
    if (type === BTRFS && !(await this.#takesNames())) return { type, bytes: 0, files: Infinity }
    return { type, bytes: Math.max(0, type === BTRFS ? bytes - MiB : bytes), files: files === 0 ? Infinity : ffree }
  }

  /** Whether a small file can be written: nothing says so but that. */
  async #takesNames(): Promise<boolean> {
    const probe = join(this.#edge.data, '.probe')
    try {
      await nodeFiles.write(probe, new Uint8Array(SMALL_BYTES))
      await nodeFiles.sync(probe)
      return true
    } catch (error) {
      if (!isBistableError(error, 'FILE_FULL')) throw error
      return false
    } finally {
      await rm(probe, { force: true })
    }
  }

  async #none(wanted: Taken, spare: Taken): Promise<Error> {
    const { partition } = this.#edge
    const free = sum(await this.#free(), spare)
    const found = await biggest(partition, [join(partition, 'snapshots'), this.#room, this.#small])
    const named = found.map(({ path, bytes }) => `${printable(path)} ${humanBytes(bytes)}`).join(', ')
    const lacks =
      free.bytes < wanted.bytes
        ? `${humanBytes(free.bytes)} free, ${humanBytes(wanted.bytes)} are needed for what is kept there about a release`
        : `room for ${free.files} files, ${wanted.files} are needed for what is kept there about a release`
    return installErrors.INSTALL_NO_SPACE(`${partition} has ${lacks}${named && `; biggest there: ${named}`}`, {
      details: { path: partition, free: free.bytes, need: wanted.bytes, biggest: found },
    })
  }
}

/**
 * Blocks that ext4 keeps from everybody, root too, for its own tables: a fiftieth, which bfree has in it. What it keeps for root
 * it does not tell, so bavail is no help. Undefined where it cannot be read.
 */
async function reservedBlocks(folder: string): Promise<number | undefined> {
  try {
    const { dev } = await stat(folder)
    const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)]
    const name = basename(await readlink(`/sys/dev/block/${major}:${minor}`))
    const kept = Number(await readFile(`/sys/fs/ext4/${name}/reserved_clusters`, 'latin1'))
    return Number.isSafeInteger(kept) ? kept : undefined
  } catch {
    return undefined
  }
}

const NOTHING: Taken = { bytes: 0, files: 0 }

const sum = (...all: readonly Taken[]): Taken =>
  all.reduce((a, b) => ({ bytes: a.bytes + b.bytes, files: a.files + b.files }), NOTHING)

const holds = (free: Taken, wanted: Taken): boolean => free.bytes >= wanted.bytes && free.files >= wanted.files

async function sizeOf(path: string): Promise<number> {
  return (await lstat(path).catch(() => undefined))?.size ?? 0
}

/** As far as there is room. */
async function fillFolder(folder: string): Promise<void> {
  const there = new Set(await readdir(folder).catch(() => []))
  if (there.size >= SMALL_FILES) return
  await nodeFiles.makeDir(folder)
  const bytes = Buffer.alloc(SMALL_BYTES)
  for (let n = 0; n < SMALL_FILES; n++)
    if (!there.has(`${n}`)) await nodeFiles.write(join(folder, `${n}`), randomFillSync(bytes))
}

async function append(path: string, bytes: number): Promise<void> {
  const file = await open(path, 'a', 0o600)
  try {
    const piece = Buffer.alloc(STEP)
    for (let left = bytes; left > 0; left -= piece.length) {
      // Random: nothing below may store it without blocks of its own.
      await file.writeFile(randomFillSync(piece).subarray(0, Math.min(left, piece.length)))
    }
    await file.sync()
  } finally {
    await file.close()
  }
}
