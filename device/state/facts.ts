import { join } from 'node:path'
import { KiB } from '../../base/bytes.ts'
import type { Files } from '../../base/durable.ts'
import type { Slot } from '../../bootloader/state.ts'

/** What the initramfs wrote down of the state (initramfs/state.sh): read here, decided there. */

export type DataFileSystem = 'ext4' | 'btrfs' | 'tmpfs'

/** Of this start. */
export interface StateFacts {
  readonly filesystem: DataFileSystem
  /** Of the data. */
  readonly schema: number
  /** The oldest schema whose releases can read them. */
  readonly readableBy: number
  /** Of the running release. */
  readonly own: number
}

/** Of the release that started from a slot last. */
export interface SlotState {
  /** "EPOCH.COUNTER" */
  readonly release: string
  readonly root: string
  readonly schema: number
}

/** A snapshot of the state; names sort by age. */
export interface Snapshot {
  readonly name: string
  readonly sequence: number
  /** The release that left the state so, "EPOCH.COUNTER"; "-" where it is not known. */
  readonly from: string
  /** The release that was tried next; undefined: it was put aside when another was put in its place. */
  readonly before: string | undefined
}

const number = /^(?:0|[1-9]\d{0,8})$/
const LIMIT = 4 * KiB

/** "FILESYSTEM SCHEMA READABLE_BY OWN"; undefined for anything else. Pure. */
export function parseFacts(text: string): StateFacts | undefined {
  const [filesystem, ...rest] = text.trim().split(' ')
  if (filesystem !== 'ext4' && filesystem !== 'btrfs' && filesystem !== 'tmpfs') return undefined
  if (rest.length !== 3 || !rest.every((word) => number.test(word))) return undefined
  const [schema = 0, readableBy = 0, own = 0] = rest.map(Number)
  return { filesystem, schema, readableBy, own }
}

/** "RELEASE ROOT SCHEMA READABLE_BY"; undefined for anything else. Pure. */
export function parseSlotState(text: string): SlotState | undefined {
  const [release = '', root = '', schema = '', readableBy = '', ...more] = text.trim().split(' ')
  const good =
    /^\d+\.\d+$/.test(release) && /^[0-9a-f]{64}$/.test(root) && number.test(schema) && number.test(readableBy)
  return good && more.length === 0 ? { release, root, schema: Number(schema) } : undefined
}

/** "NNNNNN-FROM-BEFORE" or "NNNNNN-FROM-left"; undefined for anything else. Pure. */
export function parseSnapshot(name: string): Snapshot | undefined {
  const found = /^(\d{6,9})-(-|\d+\.\d+)-(left|\d+\.\d+)$/.exec(name)
  if (found === null) return undefined
  const [, sequence, from = '', before = ''] = found
  return { name, sequence: Number(sequence), from, before: before === 'left' ? undefined : before }
}

/** Undefined where the initramfs wrote nothing: it is of another kind, or older. */
export async function readFacts(files: Files, run: string): Promise<StateFacts | undefined> {
  return parseFacts(await textOf(files, join(run, 'state')))
}

export async function readSlotState(files: Files, data: string, slot: Slot): Promise<SlotState | undefined> {
  return parseSlotState(await textOf(files, join(data, 'slots', slot, 'state')))
}

async function textOf(files: Files, path: string): Promise<string> {
  const bytes = await files.read(path, LIMIT).catch(() => undefined)
  return Buffer.from(bytes ?? '').toString('latin1')
}
