import { systemCode } from '../../base/errors.ts'
import { slotErrors } from '../../device/slots/errors.ts'
import type { SlotDevice } from '../../device/slots/types.ts'

/**
 * A medium that forgets: writes reach a cache, flushes bring them to the medium, a power cut keeps any part of what
 * was not flushed, torn at any sector. All devices of one `Machine` share one list of events.
 */

const SECTOR = 512

export type Event =
  | { readonly kind: 'write'; readonly device: string; readonly offset: number; readonly length: number }
  | { readonly kind: 'flush' | 'fresh'; readonly device: string; readonly offset: number; readonly length: number }
  | { readonly kind: 'invalidate' | 'beforeArm' | 'arm'; readonly device: '' }

export class PowerCut extends Error {}

/** A generator of numbers 0 <= x < 1 that a seed repeats exactly (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export class Machine {
  readonly events: Event[] = []
  /** Writes, flushes and callbacks until the power goes. */
  operationsLeft = Number.POSITIVE_INFINITY

  /** Records, and cuts the power when the time has come. */
  happen(event: Event): void {
    if (this.operationsLeft-- <= 0) throw new PowerCut('the power is gone')
    this.events.push(event)
  }
}

export interface Faults {
  /** May throw, or return the bytes that are really written. */
  onWrite?: (offset: number, bytes: Uint8Array) => Uint8Array
  /** Throws. */
  onFlush?: () => void
  /** Changes the medium behind everyone's back, after a flush. */
  afterFlush?: (medium: Buffer) => void
  onFreshRead?: (offset: number) => void
}

const BAD_BYTES = 4096

export class ModelDevice implements SlotDevice {
  readonly name: string
  readonly freshness = 'direct'
  readonly machine: Machine
  faults: Faults = {}
  /** Pages that cannot be read until they are written as a whole. */
  readonly bad = new Set<number>()
  medium: Buffer
  #cache: Buffer
  #pending: { readonly offset: number; readonly bytes: Buffer }[] = []

  constructor(name: string, medium: Buffer, machine: Machine) {
    this.name = name
    this.medium = medium
    this.#cache = Buffer.from(medium)
    this.machine = machine
  }

  get size(): number {
    return this.medium.length
  }

  async read(offset: number, into: Uint8Array, { fresh }: { readonly fresh: boolean }): Promise<void> {
    await Promise.resolve()
    for (const at of this.bad)
      if (at < offset + into.length && offset < at + BAD_BYTES)
        throw slotErrors.SLOT_READ_FAILED(`${this.name} cannot be read at ${at}`)
    if (fresh) {
      this.faults.onFreshRead?.(offset)
      this.machine.events.push({ kind: 'fresh', device: this.name, offset, length: into.length })
    }
    const from = fresh ? this.medium : this.#cache
    if (offset + into.length > from.length) throw new RangeError('read outside')
    into.set(from.subarray(offset, offset + into.length))
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (offset + bytes.length > this.size) throw new RangeError('write outside')
    for (const at of this.bad) {
      if (at >= offset + bytes.length || offset >= at + BAD_BYTES) continue
      // A part of a page is written by reading the rest.
      if (offset > at || offset + bytes.length < at + BAD_BYTES) throw slotErrors.SLOT_WRITE_FAILED(`at ${at}: EIO`)
      this.bad.delete(at)
    }
    const written = Buffer.from(this.faults.onWrite?.(offset, bytes) ?? bytes)
    // What is under way when the power goes may be there in part.
    this.#pending.push({ offset, bytes: written })
    this.machine.happen({ kind: 'write', device: this.name, offset, length: bytes.length })
    this.#cache.set(written, offset)
    await Promise.resolve()
  }

  async flush(): Promise<void> {
    const covered = this.#pending.length
    await Promise.resolve()
    this.faults.onFlush?.()
    this.machine.happen({ kind: 'flush', device: this.name, offset: 0, length: 0 })
    for (const { offset, bytes } of this.#pending.splice(0, covered)) this.medium.set(bytes, offset)
    this.faults.afterFlush?.(this.medium)
  }

  async close(): Promise<void> {}

  /** What the medium holds when the power comes back: each unflushed sector is old or new, in any order. */
  afterCut(random: () => number, machine: Machine): ModelDevice {
    const medium = Buffer.from(this.medium)
    for (const { offset, bytes } of this.#pending)
      for (let at = 0; at < bytes.length; ) {
        const length = Math.min(SECTOR - ((offset + at) % SECTOR), bytes.length - at)
        if (random() < 0.5) medium.set(bytes.subarray(at, at + length), offset + at)
        at += length
      }
    return new ModelDevice(this.name, medium, machine)
  }
}

export function ioError(code: string): Error {
  const error = Object.assign(new Error(`${code}: injected`), { code })
  if (systemCode(error) !== code) throw new Error('not a system error')
  return error
}
