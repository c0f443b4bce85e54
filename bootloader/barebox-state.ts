import { crc32 } from 'node:zlib'
import { checkState } from './machine.ts'
import { type BootState, otherSlot, SLOTS, type Slot } from './state.ts'

/**
 * barebox's `state` in its raw format with direct storage, and the boot state as bootchooser's variables. Pure.
 * A bucket: magic and length of what follows; then the state's own magic, the length of its data, the CRC-32 of the data and
 * one of the header; then the data. Little-endian. barebox and `barebox-state` take the first bucket that is whole.
 */

export interface StateLayout {
  /** `magic` of the state node. */
  readonly magic: number
  /** Bytes of the variables, from the node's `reg` properties. */
  readonly length: number
  /** Offsets of the 32-bit variables `remaining_attempts` and `priority` of each slot's boot target. */
  readonly variables: Readonly<Record<Slot, { readonly attempts: number; readonly priority: number }>>
}

const BUCKET_MAGIC = 0x2354fdf3
const META = 8
const HEADER = 16
export const BUCKETS = 3

/** Bytes of a bucket in use. */
export const bucketBytes = (layout: StateLayout): number => META + HEADER + layout.length

export function encodeBucket(layout: StateLayout, data: Uint8Array): Uint8Array {
  const bucket = Buffer.alloc(bucketBytes(layout))
  bucket.writeUInt32LE(BUCKET_MAGIC, 0)
  bucket.writeUInt32LE(HEADER + layout.length, 4)
  bucket.writeUInt32LE(layout.magic, 8)
  bucket.writeUInt16LE(layout.length, 14)
  bucket.writeUInt32LE(crc32(data), 16)
  bucket.writeUInt32LE(crc32(bucket.subarray(8, 20)), 20)
  bucket.set(data, META + HEADER)
  return new Uint8Array(bucket)
}

/** The data of a bucket; undefined when it is not whole. */
export function decodeBucket(layout: StateLayout, bytes: Uint8Array): Uint8Array | undefined {
  const bucket = Buffer.from(bytes)
  if (bucket.length < bucketBytes(layout) || bucket.readUInt32LE(0) !== BUCKET_MAGIC) return undefined
  if (bucket.readUInt32LE(4) !== HEADER + layout.length || bucket.readUInt32LE(8) !== layout.magic) return undefined
  if (bucket.readUInt16LE(14) !== layout.length || bucket.readUInt32LE(20) !== crc32(bucket.subarray(8, 20)))
    return undefined
  const data = Uint8Array.from(bucket.subarray(META + HEADER, bucketBytes(layout)))
  return bucket.readUInt32LE(16) === crc32(data) ? data : undefined
}

/** Bootchooser starts the target of the highest priority that has attempts left, and takes one from it; 0 is never started. */
const PRIORITY = { trial: 30, primary: 20, spare: 10, none: 0 } as const
/** What a committed slot may be started in vain before bootchooser turns to the spare. */
export const GOOD_ATTEMPTS = 3

/** The data with the variables of `state`; everything else in it is kept. */
export function withState(layout: StateLayout, data: Uint8Array, state: BootState): Uint8Array {
  const { primary, trial, left, spare } = checkState(state)
  const other = otherSlot(primary)
  const next = Buffer.from(data)
  const put = (slot: Slot, priority: number, attempts: number) => {
    next.writeUInt32LE(attempts, layout.variables[slot].attempts)
    next.writeUInt32LE(priority, layout.variables[slot].priority)
  }
  put(primary, PRIORITY.primary, GOOD_ATTEMPTS)
  if (trial !== undefined) put(trial, PRIORITY.trial, left)
  else put(other, spare ? PRIORITY.spare : PRIORITY.none, spare ? GOOD_ATTEMPTS : 0)
  return new Uint8Array(next)
}

export interface Read {
  readonly state: BootState | undefined
  /** Starts that the primary has left. */
  readonly attempts: number
}

/** What the variables say; undefined when they are not ones that `withState` and bootchooser make. */
export function readState(layout: StateLayout, data: Uint8Array): Read {
  const all = Buffer.from(data)
  const attempts = (slot: Slot) => all.readUInt32LE(layout.variables[slot].attempts)
  const has = (priority: number) => SLOTS.find((slot) => all.readUInt32LE(layout.variables[slot].priority) === priority)
  const primary = has(PRIORITY.primary)
  const none = { state: undefined, attempts: 0 }
  if (primary === undefined || (has(PRIORITY.trial) ?? has(PRIORITY.spare) ?? has(PRIORITY.none)) === undefined)
    return none
  const trial = has(PRIORITY.trial)
  const left = trial === undefined ? 0 : attempts(trial)
  if (left > 9) return none
  const spare = has(PRIORITY.spare) !== undefined
  return { state: { generation: 0, primary, trial, left, spare }, attempts: attempts(primary) }
}
