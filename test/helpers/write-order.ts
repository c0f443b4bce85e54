import { basename, dirname } from 'node:path'
import { FILES } from '../../bootloader/layout.ts'
import type { Call } from './system-calls.ts'

/** The rules for writes that matter (docs/architecture.md, "Boot state" and "Install"), held against system calls. */

export interface Places {
  readonly bootstate: string
  /** The partitions of the slot that may be written. */
  readonly slot: readonly string[]
  /** Those of the slot that runs: nothing may open them for writing. */
  readonly running: readonly string[]
  /** The data partition's folder. */
  readonly data: string
}

const isWrite = ({ name }: Call): boolean => name === 'write' || name === 'pwrite64'
const isFlush = ({ name }: Call): boolean => name === 'fsync' || name === 'fdatasync'
const isRename = ({ name }: Call): boolean => name.startsWith('rename')
const after = (calls: readonly Call[], { ended }: Call): Call[] => calls.filter((call) => call.began > ended)

/** What breaks a rule, in words; empty when nothing does. */
export function faults(calls: readonly Call[], places: Places): string[] {
  return [
    ...strange(calls, places),
    ...bootStateWrites(calls, places),
    ...slotWrites(calls, places),
    ...dataFiles(calls, places),
  ]
}

/** Writes to the two copies of the boot state, in order. */
export function stateWrites(calls: readonly Call[], { bootstate }: Places): Call[] {
  return calls.filter((call) => isWrite(call) && call.path === bootstate && call.offset !== FILES[2].offset)
}

/** Changes that outlive the process: to a partition, or to a name or file on the data partition. */
export function changes(calls: readonly Call[], { bootstate, slot, running, data }: Places): Call[] {
  const parts = [bootstate, ...slot, ...running]
  return calls.filter(
    (call) =>
      (isWrite(call) || /^(rename|unlink|mkdir)/.test(call.name)) &&
      (parts.includes(call.path) || call.path.startsWith(`${data}/`)),
  )
}

function* strange(calls: readonly Call[], { bootstate, slot, running, data }: Places): Generator<string> {
  for (const { name, path, text } of calls) {
    if (running.includes(path) && (/^p?write/.test(name) || /O_RDWR|O_WRONLY/.test(text)))
      yield `${name} of ${path}, which runs`
    const ours = [bootstate, ...slot, ...running].includes(path) || path.startsWith(`${data}/`)
    const unseen = /^(p?writev|f?truncate|fallocate|copy_file_range|sendfile|splice|io_uring|link|symlink)/.test(name)
    if (ours && (unseen || (name === 'mmap' && text.includes('MAP_SHARED'))))
      yield `${name} of ${path}, which these rules do not look into`
  }
}

/** In place, one sector, the copy that was not written last, flushed and read back before anything else is changed. */
function* bootStateWrites(calls: readonly Call[], places: Places): Generator<string> {
  for (const call of changes(calls, places).filter(({ path }) => path === places.bootstate)) {
    const what = `the boot state write at ${call.offset}`
    if (!FILES.some(({ offset }) => offset === call.offset)) yield `${what} is at the start of no file`
    if (call.result !== 512) yield `${what} has ${call.result} bytes`
    const later = after(calls, call)
    const next = changes(later, places)[0]?.began ?? Number.POSITIVE_INFINITY
    const flushed = later.find((one) => isFlush(one) && one.path === places.bootstate)
    if (flushed === undefined || flushed.ended > next) {
      yield `${what} is not flushed`
      continue
    }
    const whole = (one: Call) => one.path === places.bootstate && one.offset === call.offset && one.result === 1024
    const back = after(calls, flushed).find((one) => one.name === 'pread64' && whole(one))
    if (back === undefined || back.ended > next) yield `${what} is not read back`
  }
  const states = stateWrites(calls, places)
  for (const [n, call] of states.entries())
    if (call.offset === states[n - 1]?.offset) yield `two boot state writes in a row at ${call.offset}`
}

/**
 * The first boot state write (the claim) is over before the first byte goes into the slot; every byte of the slot is
 * flushed and then read back before the last one (arming), and nothing is written to either behind that.
 */
function* slotWrites(calls: readonly Call[], places: Places): Generator<string> {
  const writes = changes(calls, places).filter(({ path }) => places.slot.includes(path))
  if (writes.length === 0) return
  // Two may be under way at a time, and end in the other order.
  const first = Math.min(...writes.map(({ began }) => began))
  const states = stateWrites(calls, places)
  const [claim] = states
  const arm = states.at(-1)
  if (claim === undefined || arm === undefined || claim.ended > first || claim === arm)
    return yield 'the slot is written before the boot state stops naming it, or it is not armed'
  for (const call of writes) {
    const what = `the write of ${call.result} bytes at ${call.offset} of ${call.path}`
    if (call.ended > arm.began) yield `${what} comes behind arming`
    const flushed = after(calls, call).find((one) => isFlush(one) && one.path === call.path)
    if (flushed === undefined || flushed.ended > arm.began) {
      yield `${what} is not flushed before arming`
      continue
    }
    const reads = after(calls, flushed).filter(
      ({ name, path, ended }) => name === 'pread64' && path === call.path && ended < arm.began,
    )
    const end = (call.offset ?? 0) + call.result
    if (coveredUpTo(reads, call.offset ?? 0) < end) yield `${what} is not read back before arming`
  }
}

/** How far these reads reach without a gap, from `at` on. */
function coveredUpTo(reads: readonly Call[], at: number): number {
  let reached = at
  for (const { offset = 0, result } of [...reads].sort((x, y) => (x.offset ?? 0) - (y.offset ?? 0)))
    if (offset <= reached) reached = Math.max(reached, offset + result)
  return reached
}

/** The note for GRUB, where no cut leaves a third content, and room that is held for the records. */
const IN_PLACE = ['committed', 'reserve']

/**
 * A file on the data partition is written beside its place, flushed, renamed into it, and the folder flushed; a removed
 * name and a new folder are flushed too. All of it before the next write to the boot state or a slot.
 */
function* dataFiles(calls: readonly Call[], places: Places): Generator<string> {
  const parts = [places.bootstate, ...places.slot]
  for (const call of changes(calls, places).filter(({ path }) => !parts.includes(path))) {
    const what = `${call.name} of ${call.path}`
    const later = after(calls, call)
    const next = changes(later, places).find(({ path }) => parts.includes(path))?.began ?? Number.POSITIVE_INFINITY
    const flushes = (path: string) => later.find((one) => isFlush(one) && one.path === path)
    if (isWrite(call)) {
      const rename = later.find((one) => isRename(one) && one.from === call.path)
      if (IN_PLACE.includes(basename(call.path))) {
        if ((flushes(call.path)?.ended ?? Number.POSITIVE_INFINITY) > next) yield `${what} is not flushed`
      } else if (rename === undefined) yield `${what} is in place`
      else if ((flushes(call.path)?.ended ?? Number.POSITIVE_INFINITY) > rename.began)
        yield `${what} is not flushed before it is renamed`
    } else if ((flushes(dirname(call.path))?.ended ?? Number.POSITIVE_INFINITY) > next)
      yield `the folder of ${what} is not flushed`
  }
}
