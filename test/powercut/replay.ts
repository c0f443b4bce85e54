import { dirname } from 'node:path'
import { encodeWord } from '../../bootloader/grub-env.ts'
import { FILES } from '../../bootloader/layout.ts'
import type { Slot } from '../../bootloader/state.ts'
import { sha256 } from '../../bundle/digest.ts'
import { type DiskContent, type Op, PARTS, type Part, RecordedDisk, type Told, type Writer } from './disk.ts'
import { bootFiles, stateIn } from './grub.ts'
import type { SlotContent } from './slots.ts'

/**
 * What is on the medium and what is still on its way while a recorded story is replayed: writes that no flush has
 * covered, names that no directory flush has covered, contents that no file flush has covered. A cut keeps any part of it.
 */

export const PAGE = 4096

/** A piece of one write that lies in one page (slots) or in one sector (boot state). */
export interface Unit {
  readonly id: string
  /** Which write it belongs to. */
  readonly write: number
  readonly part: Part
  readonly offset: number
  readonly bytes: Buffer
  readonly by: Writer
}

export interface Inode {
  readonly bytes: Buffer
  /** Stands for the bytes. */
  readonly id: string
  safe: boolean
}

/** A change of a directory that its flush has not covered. */
export interface NameChange {
  readonly path: string
  readonly inode: Inode | undefined
  /** A rename takes this name away. */
  readonly from: string | undefined
}

/** What a cut keeps. */
export interface Choice {
  readonly units: readonly Unit[]
  /** Replaces one page of a partition: a torn write. */
  readonly torn?: { readonly part: Part; readonly page: number; readonly bytes: Buffer }
  readonly names: readonly NameChange[]
  /** Contents instead of what was written, for files that were not flushed. */
  readonly contents?: ReadonlyMap<Inode, Inode>
}

/** A disk after a cut. What its functions give is right until the next one is asked for. */
export interface CutDisk {
  readonly what: string
  readonly told: Told
  readonly boot: Buffer
  readonly bootKey: string
  /** Boot states that may count here: what was durable, and what was being written. */
  readonly bootAllowed: ReadonlySet<string>
  /** No copy was good before the writes that are on their way: then there may be none. */
  readonly bootLost: boolean
  readonly slot: (slot: Slot) => SlotContent
  /** The data partition, where it was recorded as one. */
  readonly data: () => Buffer
  readonly dataKey: string
  readonly files: ReadonlyMap<string, Buffer>
  readonly filesKey: string
  readonly key: string
}

export class Replay {
  readonly medium: Record<Part, Buffer>
  /** Stands for what is on the medium: equal where nothing was written between two flushes. */
  readonly #contents: Record<Part, string>
  units: Unit[] = []
  names: NameChange[] = []
  #writes = 0
  #durable = new Map<string, Inode>()
  /** The newest names, with everything applied. */
  #now: Map<string, Inode>

  constructor(name: string, start: DiskContent) {
    this.medium = new RecordedDisk(start).parts
    this.#contents = Object.fromEntries(PARTS.map((part) => [part, `${name}:${part}`])) as Record<Part, string>
    for (const [path, bytes] of start.files) this.#durable.set(path, inodeOf(bytes, true))
    this.#now = new Map(this.#durable)
  }

  /** Takes one recorded operation. */
  take(op: Op): void {
    switch (op.kind) {
      case 'write':
        this.units.push(...this.#split(op))
        return
      case 'flush':
        this.#settle(op.part)
        return
      case 'file-write':
        this.#change({ path: op.path, inode: inodeOf(op.bytes, false), from: undefined })
        return
      case 'file-sync': {
        const inode = this.#now.get(op.path)
        if (inode !== undefined) inode.safe = true
        return
      }
      case 'rename':
        this.#change({ path: op.path, inode: this.#now.get(op.from), from: op.from })
        return
      case 'remove':
        this.#change({ path: op.path, inode: undefined, from: undefined })
        return
      case 'sync-dir': {
        const covered = (change: NameChange) => dirname(change.path) === op.path
        for (const change of this.names.filter(covered)) applyName(this.#durable, change)
        this.names = this.names.filter((change) => !covered(change))
      }
    }
  }

  #change(change: NameChange): void {
    applyName(this.#now, change)
    this.names.push(change)
  }

  #split({ part, offset, bytes, by }: Op & { readonly kind: 'write' }): Unit[] {
    const step = part === 'bootstate' ? 512 : PAGE
    const write = this.#writes++
    const units: Unit[] = []
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(step - ((offset + at) % step), bytes.length - at)
      const id = `${write}.${units.length}`
      units.push({ id, write, part, offset: offset + at, bytes: bytes.subarray(at, at + length), by })
      at += length
    }
    return units
  }

  #settle(part: Part): void {
    const arrived = this.units.filter((unit) => unit.part === part)
    for (const unit of arrived) this.medium[part].set(unit.bytes, unit.offset)
    this.#contents[part] = this.#contentOf(part, arrived, '')
    this.units = this.units.filter((unit) => unit.part !== part)
  }

  /** The same for a flush that all of them wait for and for a cut that keeps all of them. */
  #contentOf(part: Part, kept: readonly Unit[], torn: string): string {
    const before = this.#contents[part]
    if (kept.length === 0 && torn === '') return before
    return sha256(Buffer.from(`${before}+${kept.map((unit) => unit.id).join()}${torn}`))
  }

  /** Files whose names may be there and whose contents no flush has covered. */
  unsafe(): Inode[] {
    const all = new Set([...this.#durable.values(), ...this.names.map((change) => change.inode)])
    return [...all].filter((inode) => inode !== undefined).filter((inode) => !inode.safe)
  }

  /** One page of a partition with these units written over it. */
  page(part: Part, page: number, units: readonly Unit[]): Buffer {
    const bytes = Buffer.from(this.medium[part].subarray(page * PAGE, (page + 1) * PAGE))
    for (const unit of units)
      if (unit.part === part && Math.floor(unit.offset / PAGE) === page) bytes.set(unit.bytes, unit.offset % PAGE)
    return bytes
  }

  /** The disk that a cut leaves when it keeps `choice`. */
  disk(choice: Choice, what: string, told: Told): CutDisk {
    const boot = this.#bootAfter(choice)
    const bootKey = sha256(boot)
    const names = new Map(this.#durable)
    for (const change of choice.names) applyName(names, change)
    const files = new Map<string, Buffer>()
    const parts: string[] = []
    for (const [path, inode] of names) {
      const { bytes, id } = choice.contents?.get(inode) ?? inode
      files.set(path, bytes)
      parts.push(`${path}=${id}`)
    }
    const filesKey = parts.sort().join()
    const keys = new Map(PARTS.map((part) => [part, this.#partKey(part, choice)]))
    const slot = (which: Slot): SlotContent => ({
      key: `${keys.get(`boot-${which}`)} ${keys.get(`rootfs-${which}`)}`,
      boot: () => this.#partAfter(`boot-${which}`, choice),
      rootfs: () => this.#partAfter(`rootfs-${which}`, choice),
    })
    const { installFloor, securityFloor, rootVersion } = told
    const key = [bootKey, filesKey, ...keys.values(), installFloor, securityFloor, rootVersion].join('|')
    return {
      what,
      told,
      boot,
      bootKey,
      bootAllowed: this.#bootAllowed(),
      bootLost: stateIn(bootFiles(this.medium.bootstate)) === undefined,
      slot,
      data: () => this.#partAfter('data', choice),
      dataKey: keys.get('data') ?? '',
      files,
      filesKey,
      key: sha256(Buffer.from(key)),
    }
  }

  #bootAfter(choice: Choice): Buffer {
    const files = bootFiles(this.medium.bootstate)
    for (const [n, { offset }] of FILES.entries()) {
      for (const unit of choice.units)
        if (unit.part === 'bootstate' && unit.offset >= offset && unit.offset < offset + 1024)
          files.set(unit.bytes, n * 1024 + unit.offset - offset)
      if (choice.torn?.part === 'bootstate' && choice.torn.page * PAGE === offset)
        files.set(choice.torn.bytes.subarray(0, 1024), n * 1024)
    }
    return files
  }

  #bootAllowed(): ReadonlySet<string> {
    const durable = bootFiles(this.medium.bootstate)
    const states = [stateIn(durable)]
    const alone = (n: number): Buffer => {
      const files = Buffer.alloc(3072)
      durable.copy(files, n * 1024, n * 1024, n * 1024 + 1024)
      return files
    }
    const copyOf = ({ offset }: Unit): number => FILES.findIndex((f) => offset >= f.offset && offset < f.offset + 1024)
    const coming = this.units.filter((unit) => unit.part === 'bootstate' && copyOf(unit) < 2)
    // Each write on its way, whole: to the copy it goes to, and alone.
    for (const write of new Set(coming.map((unit) => unit.write))) {
      const own = coming.filter((unit) => unit.write === write)
      const n = copyOf(own[0] as Unit)
      const files = alone(n)
      for (const unit of own) files.set(unit.bytes, n * 1024 + unit.offset - (FILES[n as 0 | 1].offset as number))
      states.push(stateIn(files))
    }
    // Two tries that no system followed: nothing flushed the first count, so the state before arming may come back.
    if ([0, 1].every((n) => coming.some((unit) => unit.by === 'bootloader' && copyOf(unit) === n)))
      states.push(stateIn(alone(0)), stateIn(alone(1)))
    return new Set(states.filter((state) => state !== undefined).map(encodeWord))
  }

  #partKey(part: Part, choice: Choice): string {
    if (part === 'bootstate') return ''
    const kept = choice.units.filter((unit) => unit.part === part)
    const torn = choice.torn?.part === part ? ` ${choice.torn.page}:${sha256(choice.torn.bytes)}` : ''
    return this.#contentOf(part, kept, torn)
  }

  #partAfter(part: Part, choice: Choice): Buffer {
    const bytes = Buffer.from(this.medium[part])
    for (const unit of choice.units) if (unit.part === part) bytes.set(unit.bytes, unit.offset)
    if (choice.torn?.part === part) bytes.set(choice.torn.bytes, choice.torn.page * PAGE)
    return bytes
  }
}

export function inodeOf(bytes: Buffer, safe: boolean): Inode {
  return { bytes, id: sha256(bytes), safe }
}

function applyName(names: Map<string, Inode>, { path, inode, from }: NameChange): void {
  if (from !== undefined && names.get(from) === inode) names.delete(from)
  if (inode === undefined) names.delete(path)
  else names.set(path, inode)
}
