import { systemReason } from '../base/errors.ts'
import { readBootState, storeFile } from './bootstate.ts'
import { bootErrors } from './errors.ts'
import { BLOCK_BYTES, readBlock } from './grub-block.ts'
import { chooseCopy, encodeCopy, SECTOR_BYTES } from './grub-env.ts'
import { BOOTSTATE_BYTES, FILES, METADATA_BYTES, metadata, REASON } from './layout.ts'
import { checkState } from './machine.ts'
import type { RawDevice } from './raw-device.ts'
import { encodeReason, NO_REASON } from './reason.ts'
import type { BootState, Slot } from './state.ts'

/** Looks at a boot state partition that may be damaged in any way, and makes it whole again in place. */

/** One part of the partition. `ok`, or what is wrong with it in words. */
export interface PartFound {
  readonly name: 'layout' | 'state0.env' | 'state1.env' | 'reason.env'
  readonly ok: boolean
  readonly detail: string
}

export interface BootStateSurvey {
  /** The state that counts once the layout is whole: a copy may be good where the bootloader cannot find it any more. */
  readonly state: BootState | undefined
  readonly parts: readonly PartFound[]
}

/** Opened like a backend, but for what no backend can open any more. */
export interface BootRepairer {
  survey(): Promise<BootStateSurvey>
  /** @returns what was written, for people */
  restore(state: BootState, up: Slot): Promise<readonly string[]>
  close(): Promise<void>
}

export function grubRepairer(device: RawDevice): BootRepairer {
  return {
    survey: () => surveyBootState(device),
    restore: (state, up) => restoreBootState(device, state, up),
    close: () => device.close(),
  }
}

/**
 * Reads everything and writes nothing.
 * Throws BOOT_STATE_SIZE when the partition has no room for the boot state, BOOT_STATE_READ when it cannot be read at all.
 */
export async function surveyBootState(device: RawDevice): Promise<BootStateSurvey> {
  await requireRoom(device)
  const { state, copies } = await readBootState(device)
  const copyParts = copies.map((copy, index): PartFound => {
    const name = index === 0 ? 'state0.env' : 'state1.env'
    return copy.kind === 'valid'
      ? { name, ok: true, detail: `generation ${copy.state.generation}` }
      : { name, ok: false, detail: copy.detail }
  })
  return { state, parts: [await layoutPart(device), ...copyParts, await reasonPart(device)] }
}

/** Throws BOOT_STATE_READ when nothing can be read, BOOT_STATE_SIZE. One sector that is lost is damage like any other. */
export async function requireRoom(device: RawDevice): Promise<void> {
  const places = [0, ...FILES.map(({ offset }) => offset), BOOTSTATE_BYTES - SECTOR_BYTES]
  const reads = await Promise.allSettled(places.map((at) => device.read(at, SECTOR_BYTES)))
  const causes = reads.flatMap((read): unknown[] => (read.status === 'rejected' ? [read.reason] : []))
  if (causes.length === places.length)
    throw bootErrors.BOOT_STATE_READ(`${device.name}: ${systemReason(causes[0])}`, { cause: causes[0] })
  const short = causes.find((cause) => cause instanceof RangeError)
  if (short !== undefined)
    throw bootErrors.BOOT_STATE_SIZE(`${short.message}; the boot state takes ${BOOTSTATE_BYTES}`, { cause: short })
}

async function layoutPart(device: RawDevice): Promise<PartFound> {
  const name = 'layout'
  const found = await device.read(0, METADATA_BYTES).catch(() => undefined)
  if (found === undefined) return { name, ok: false, detail: 'cannot be read' }
  const at = metadata().findIndex((byte, index) => byte !== found[index])
  if (at === -1) return { name, ok: true, detail: 'as it was made' }
  const blank = found.every((byte) => byte === found[0])
  return { name, ok: false, detail: blank ? 'blank' : `differs from byte ${at} on` }
}

export async function reasonPart(device: RawDevice): Promise<PartFound> {
  const name = 'reason.env'
  const bytes = await device.read(FILES[REASON].offset, BLOCK_BYTES).catch(() => undefined)
  if (bytes === undefined) return { name, ok: false, detail: 'cannot be read' }
  const variables = readBlock(bytes)
  if (variables === undefined) return { name, ok: false, detail: 'no GRUB environment block' }
  const head = variables.get('rs_head')
  const whole = head !== undefined && head === variables.get('rs_tail')
  return whole ? { name, ok: true, detail: head } : { name, ok: false, detail: 'rs_head and rs_tail differ' }
}

/**
 * Makes every part whole so that `state` counts, and says what was written. A part that is good is left alone, the
 * copy that counts above all.
 *
 * The order: copies and reason first, then the file system around them, which GRUB needs only for writing. A copy that
 * is half written counts for nothing, so at no moment is there a state that nobody meant.
 *
 * @param up the slot that runs
 * @throws BOOT_STATE_WRITE, BOOT_STATE_NOT_STORED, BOOT_STATE_SIZE, BOOT_STATE_READ
 */
export async function restoreBootState(device: RawDevice, state: BootState, up: Slot): Promise<readonly string[]> {
  checkState(state)
  const did: string[] = []
  const before = await surveyBootState(device)
  const broken = new Set(before.parts.filter((part) => !part.ok).map((part) => part.name))
  const { copies } = await readBootState(device)
  const source = chooseCopy(copies)
  // With a good copy the other one gets the same state a generation on, as every write of the agent does.
  for (const index of source === undefined ? ([0, 1] as const) : ([source === 0 ? 1 : 0] as const)) {
    const same = before.state !== undefined && sameState(before.state, state)
    if (same && copies[index].kind === 'valid') continue
    if (before.state !== undefined && state.generation <= before.state.generation)
      throw bootErrors.BOOT_STATE_INVALID(`generation ${state.generation} is not above ${before.state.generation}`)
    const { name } = FILES[index]
    const generation = index === 1 && source === undefined ? Math.max(0, state.generation - 1) : state.generation
    await storeFile(device, index, encodeCopy({ ...state, generation }))
    did.push(`wrote ${name}`)
  }
  if (broken.has('reason.env')) {
    await storeFile(device, REASON, encodeReason({ ...NO_REASON, starts: { a: 0, b: 0, up } }))
    did.push('wrote reason.env')
  }
  if (broken.has('layout')) {
    await writeLayout(device)
    did.push('wrote the file system around them')
  }
  const after = await surveyBootState(device)
  const bad = after.parts.find((part) => !part.ok)
  if (bad !== undefined) throw bootErrors.BOOT_STATE_NOT_STORED(`${bad.name} on ${device.name}: ${bad.detail}`)
  return did
}

/** Generations aside. */
function sameState(one: BootState, two: BootState): boolean {
  return JSON.stringify({ ...one, generation: 0 }) === JSON.stringify({ ...two, generation: 0 })
}

async function writeLayout(device: RawDevice): Promise<void> {
  try {
    await device.write(0, metadata())
    await device.flush()
  } catch (cause) {
    throw bootErrors.BOOT_STATE_WRITE(`the file system on ${device.name}: ${systemReason(cause)}`, { cause })
  }
}
