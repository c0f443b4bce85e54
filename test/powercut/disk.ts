import type { Files } from '../../base/durable.ts'
import { FILES } from '../../bootloader/layout.ts'
import type { RawDevice } from '../../bootloader/raw-device.ts'
import { SLOTS, type Slot } from '../../bootloader/state.ts'
import { IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import type { SlotDevice } from '../../device/slots/types.ts'

/** A disk that records each write and flush made to it: the boot state partition, four slot partitions, the data files. */

export type SlotPart = `${ImageName}-${Slot}`
/** `data` only where a real file system is replayed; on the model its files are recorded as files. */
export type Part = 'bootstate' | SlotPart | 'data'
export const SLOT_PARTS: readonly SlotPart[] = SLOTS.flatMap((slot) =>
  IMAGE_NAMES.map((image) => `${image}-${slot}` as const),
)
export const PARTS: readonly Part[] = ['bootstate', ...SLOT_PARTS, 'data']

/** A bootloader's writes are flushed by nobody before a system runs. */
export type Writer = 'system' | 'bootloader'

export type Op =
  | {
      readonly kind: 'write'
      readonly part: Part
      readonly offset: number
      readonly bytes: Buffer
      readonly by: Writer
    }
  | { readonly kind: 'flush'; readonly part: Part }
  | { readonly kind: 'file-write'; readonly path: string; readonly bytes: Buffer }
  | { readonly kind: 'file-sync' | 'remove' | 'sync-dir'; readonly path: string }
  | { readonly kind: 'rename'; readonly path: string; readonly from: string }

/** What the device has promised by now: it must hold on every disk that a later cut leaves. */
export interface Told {
  /** Floors as `rankOf` has them. */
  readonly installFloor: number
  readonly securityFloor: number
  readonly rootVersion: number
}
export const NOTHING_TOLD: Told = { installFloor: 0, securityFloor: 0, rootVersion: 0 }

export interface Entry {
  readonly op: Op
  /** Promised before `op` was asked for. */
  readonly told: Told
}

export interface DiskContent {
  readonly parts: Readonly<Record<Part, Buffer>>
  readonly files: ReadonlyMap<string, Buffer>
}

export class RecordedDisk {
  readonly parts: Record<Part, Buffer>
  readonly content: Map<string, Buffer>
  readonly log: Entry[] = []
  /** What the device has promised up to now. */
  told: () => Told = () => NOTHING_TOLD

  constructor(start: DiskContent) {
    const copy = (part: Part) => Buffer.from(start.parts[part])
    this.parts = {
      bootstate: copy('bootstate'),
      'boot-a': copy('boot-a'),
      'rootfs-a': copy('rootfs-a'),
      'boot-b': copy('boot-b'),
      'rootfs-b': copy('rootfs-b'),
      data: copy('data'),
    }
    this.content = new Map(start.files)
  }

  /** Everything written so far, as a new disk that owes nothing. */
  settled(): DiskContent {
    return { parts: new RecordedDisk({ parts: this.parts, files: new Map() }).parts, files: new Map(this.content) }
  }

  #log(op: Op): void {
    this.log.push({ op, told: this.told() })
  }

  write(part: Part, offset: number, bytes: Uint8Array, by: Writer = 'system'): void {
    if (part === 'bootstate' && !FILES.some((f) => offset >= f.offset && offset + bytes.length <= f.offset + 1024))
      throw new Error(`${bytes.length} bytes at ${offset} of the boot state partition are outside of its three files`)
    if (offset + bytes.length > this.parts[part].length) throw new RangeError(`write behind the end of ${part}`)
    this.#log({ kind: 'write', part, offset, bytes: Buffer.from(bytes), by })
    this.parts[part].set(bytes, offset)
  }

  flush(part: Part): void {
    this.#log({ kind: 'flush', part })
  }

  bootDevice(): RawDevice {
    return {
      name: 'bootstate',
      read: async (offset, length) => Uint8Array.from(this.parts.bootstate.subarray(offset, offset + length)),
      write: async (offset, bytes) => this.write('bootstate', offset, bytes),
      flush: async () => this.flush('bootstate'),
      close: async () => undefined,
    }
  }

  slotDevice(part: SlotPart): SlotDevice {
    const medium = this.parts[part]
    return {
      name: part,
      size: medium.length,
      freshness: 'direct',
      read: async (offset, into) => {
        into.set(medium.subarray(offset, offset + into.length))
      },
      write: async (offset, bytes) => this.write(part, offset, bytes),
      flush: async () => this.flush(part),
      close: async () => undefined,
    }
  }

  files(): Files {
    const { content } = this
    return {
      read: async (path, limit) => {
        const bytes = content.get(path)
        if (bytes !== undefined && bytes.length > limit) throw new RangeError(`${path} has ${bytes.length} bytes`)
        return bytes === undefined ? undefined : Uint8Array.from(bytes)
      },
      write: async (path, bytes) => {
        const kept = Buffer.from(bytes)
        this.#log({ kind: 'file-write', path, bytes: kept })
        content.set(path, kept)
      },
      sync: async (path) => this.#log({ kind: 'file-sync', path }),
      rename: async (from, path) => {
        const bytes = content.get(from)
        if (bytes === undefined) throw new Error(`rename of missing ${from}`)
        this.#log({ kind: 'rename', path, from })
        content.delete(from)
        content.set(path, bytes)
      },
      syncDir: async (path) => this.#log({ kind: 'sync-dir', path }),
      // Directories stand here from the start; nothing depends on their absence.
      makeDir: async () => undefined,
      remove: async (path) => this.#remove(path),
      removeTree: async (path) => {
        for (const inside of [...content.keys()].filter((name) => name.startsWith(`${path}/`))) this.#remove(inside)
      },
    }
  }

  #remove(path: string): void {
    if (!this.content.has(path)) return
    this.#log({ kind: 'remove', path })
    this.content.delete(path)
  }
}
