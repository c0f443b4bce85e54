import { systemReason } from '../base/errors.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import { clearReason, readReason } from './bootstate.ts'
import { bootErrors } from './errors.ts'
import { FILES } from './layout.ts'
import { checkState } from './machine.ts'
import type { RawDevice } from './raw-device.ts'
import { encodeReason, NO_REASON } from './reason.ts'
import { type BootState, MAX_TRIES } from './state.ts'
import { chooseEnv, decodeEnv, type Environment, encodeEnv, nextFlag } from './uboot-env.ts'
import { ENV_BYTES, ubootHeader, ubootLayoutImage } from './uboot-layout.ts'
import { stateFrom, stateVariables } from './uboot-state.ts'

/** The U-Boot backend: the boot state partition as `boot.cmd` reads it. An edge module, over a `RawDevice`. */

type Copy = { readonly state: BootState; readonly env: Environment } | undefined

/** One copy's 512 bytes. */
export function encodeUbootCopy(state: BootState, flag: number): Uint8Array {
  return encodeEnv({ variables: stateVariables(state), flag }, ENV_BYTES)
}

/** What `boot.cmd` makes of a copy: undefined when it does not count. */
export function decodeUbootCopy(bytes: Uint8Array): Copy {
  const env = decodeEnv(bytes, 'redundant')
  const state = env === undefined ? undefined : stateFrom(env.variables)
  return env === undefined || state === undefined ? undefined : { state, env }
}

/** The image of the boot state partition (1 MiB) of a device that runs `state.primary` and never failed. */
export function ubootBootstateImage(state: BootState): Uint8Array {
  checkState(state)
  const reason = encodeReason({ ...NO_REASON, starts: { ...NO_REASON.starts, up: state.primary } })
  const older = { ...state, generation: Math.max(0, state.generation - 1) }
  return ubootLayoutImage([encodeUbootCopy(state, 1), encodeUbootCopy(older, 0), reason])
}

/** True when the partition says that it is U-Boot's. */
export async function isUbootPartition(device: RawDevice): Promise<boolean> {
  return Buffer.compare(await device.read(0, 512), ubootHeader()) === 0
}

/** The boot state on an already checked device. */
export function ubootStateOn(device: RawDevice): BootBackend {
  return {
    describe: () => ({ name: 'uboot', place: `U-Boot environments on ${device.name}`, maxTries: MAX_TRIES }),
    read: async () => (await readUboot(device)).reading,
    write: (state) => writeUboot(device, state),
    reason: () => readReason(device),
    clearReason: (up) => clearReason(device, up),
    close: () => device.close(),
  }
}

async function readUboot(device: RawDevice): Promise<{ reading: BackendReading; copies: readonly [Copy, Copy] }> {
  const copies = [await readCopy(device, 0), await readCopy(device, 1)] as const
  const source = chooseEnv([copies[0]?.env, copies[1]?.env])
  const torn = source !== undefined && copies.includes(undefined)
  return { reading: { state: source === undefined ? undefined : copies[source]?.state, torn }, copies }
}

/** A copy that cannot be read is a lost one, not a failure: that is what the other is for. */
async function readCopy(device: RawDevice, index: 0 | 1): Promise<Copy> {
  return await device.read(FILES[index].offset, ENV_BYTES).then(decodeUbootCopy, () => undefined)
}

/** One write of one sector to the copy that does not count, flushed and read back. */
async function writeUboot(device: RawDevice, state: BootState): Promise<void> {
  const { reading, copies } = await readUboot(device)
  const before = reading.state
  if (before !== undefined && checkState(state).generation <= before.generation)
    throw bootErrors.BOOT_STATE_INVALID(
      `generation ${state.generation} is to replace ${before.generation}: it must be higher`,
    )
  const source = chooseEnv([copies[0]?.env, copies[1]?.env])
  const { offset } = FILES[source === 0 ? 1 : 0]
  const bytes = encodeUbootCopy(state, nextFlag(source === undefined ? 0 : (copies[source]?.env.flag ?? 0)))
  try {
    await device.write(offset, bytes)
    await device.flush()
  } catch (cause) {
    throw bootErrors.BOOT_STATE_WRITE(`the environment at ${offset} on ${device.name}: ${systemReason(cause)}`, {
      cause,
    })
  }
  const back = await device.read(offset, ENV_BYTES).catch((cause: unknown) => {
    throw bootErrors.BOOT_STATE_NOT_STORED(`${device.name} cannot be read back: ${systemReason(cause)}`, { cause })
  })
  if (Buffer.compare(back, bytes) !== 0)
    throw bootErrors.BOOT_STATE_NOT_STORED(`${device.name} reads back other bytes than were written at ${offset}`)
}
