import { systemReason } from '../base/errors.ts'
import { storeFile } from './bootstate.ts'
import { bootErrors } from './errors.ts'
import { FILES, REASON } from './layout.ts'
import type { RawDevice } from './raw-device.ts'
import { encodeReason, NO_REASON } from './reason.ts'
import { type BootRepairer, type BootStateSurvey, type PartFound, reasonPart, requireRoom } from './repair.ts'
import type { BootState, Slot } from './state.ts'
import { decodeUbootCopy, encodeUbootCopy, isUbootPartition, ubootStateOn } from './uboot.ts'
import { ENV_BYTES, ubootHeader } from './uboot-layout.ts'

/** The same as `repair.ts` for a partition that U-Boot reads: a header and two environments instead of a file system. */

export function ubootRepairer(device: RawDevice): BootRepairer {
  return {
    survey: () => survey(device),
    restore: (state, up) => restore(device, state, up),
    close: () => device.close(),
  }
}

/** True when something of U-Boot's is left on the partition, however damaged it is. */
export async function hasUbootRemains(device: RawDevice): Promise<boolean> {
  if (await isUbootPartition(device).catch(() => false)) return true
  return (await copyAt(device, 0)) !== undefined || (await copyAt(device, 1)) !== undefined
}

const copyAt = (device: RawDevice, index: 0 | 1) =>
  device.read(FILES[index].offset, ENV_BYTES).then(decodeUbootCopy, () => undefined)

async function survey(device: RawDevice): Promise<BootStateSurvey> {
  await requireRoom(device)
  const whole = await isUbootPartition(device).catch(() => false)
  const header = {
    name: 'layout',
    ok: whole,
    detail: whole ? 'as it was made' : 'the first sector is not ours',
  } as const
  const copies = [0, 1].map(async (index): Promise<PartFound> => {
    const copy = await copyAt(device, index as 0 | 1)
    const name = index === 0 ? 'state0.env' : 'state1.env'
    return copy === undefined
      ? { name, ok: false, detail: 'no environment with a good checksum' }
      : { name, ok: true, detail: `generation ${copy.state.generation}` }
  })
  const { state } = await ubootStateOn(device).read()
  return { state, parts: [header, ...(await Promise.all(copies)), await reasonPart(device)] }
}

/** The header last: until it is right the agent finds no boot state of U-Boot's here, as before. */
async function restore(device: RawDevice, state: BootState, up: Slot): Promise<readonly string[]> {
  const before = await survey(device)
  const bad = before.parts.filter((part) => !part.ok).map((part) => part.name)
  const did: string[] = []
  if (before.state === undefined) {
    const older = { ...state, generation: Math.max(0, state.generation - 1) }
    await put(device, FILES[1].offset, encodeUbootCopy(older, 0))
    await put(device, FILES[0].offset, encodeUbootCopy(state, 1))
    did.push('wrote state0.env', 'wrote state1.env')
  } else if (bad.includes('state0.env') || bad.includes('state1.env')) {
    await ubootStateOn(device).write(state)
    did.push(bad.includes('state0.env') ? 'wrote state0.env' : 'wrote state1.env')
  }
  if (bad.includes('reason.env')) {
    await storeFile(device, REASON, encodeReason({ ...NO_REASON, starts: { a: 0, b: 0, up } }))
    did.push('wrote reason.env')
  }
  if (bad.includes('layout')) {
    await put(device, 0, ubootHeader())
    did.push('wrote the header')
  }
  const still = (await survey(device)).parts.find((part) => !part.ok)
  if (still !== undefined) throw bootErrors.BOOT_STATE_NOT_STORED(`${still.name} on ${device.name}: ${still.detail}`)
  return did
}

async function put(device: RawDevice, offset: number, sector: Uint8Array): Promise<void> {
  try {
    await device.write(offset, sector)
    await device.flush()
  } catch (cause) {
    throw bootErrors.BOOT_STATE_WRITE(`${device.name} at ${offset}: ${systemReason(cause)}`, { cause })
  }
}
