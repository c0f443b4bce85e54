import { systemReason } from '../base/errors.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import type { BootCounter } from './boot-counter.ts'
import { bootErrors } from './errors.ts'
import { checkState } from './machine.ts'
import type { RawDevice } from './raw-device.ts'
import { type BootReason, NO_REASON } from './reason.ts'
import { MAX_TRIES } from './state.ts'
import { chooseEnv, decodeEnv, type Environment, encodeEnv, nextFlag } from './uboot-env.ts'
import { fullTries, isCounted, type OwnNames, ownState, withState } from './uboot-own-names.ts'

/** A board's own U-Boot environment, with the variables that its own script reads already (uboot-own-names.ts). */

export interface EnvPlace {
  readonly device: string
  /** Bytes from the start, or, negative, from the end of the device. */
  readonly offset: number
  readonly size: number
}

export interface OwnEnvironment {
  /** Two places on opened devices. */
  readonly copies: readonly [OwnCopy, OwnCopy]
  readonly names: OwnNames
  /** With SWUpdate's names: where U-Boot counts, if not in the environment. */
  readonly counter?: BootCounter
}

export interface OwnCopy {
  readonly device: RawDevice
  readonly offset: number
  readonly size: number
}

const MAX_SIZE = 1024 * 1024
const SECTOR = 512
/** A RawDevice takes at most this at once. */
const WINDOW = 64 * 1024

/**
 * The two places that a fw_env.config names: "DEVICE OFFSET SIZE …" per line, numbers as C writes them.
 * Throws BOOT_ENV_CONFIG for anything but two places of one size on whole sectors: an environment in one copy would be
 * lost by a power cut while it is written.
 */
export function parseFwEnvConfig(text: string): readonly [EnvPlace, EnvPlace] {
  const places = text
    .split('\n')
    .map((line) => line.replace(/#.*$/, '').trim())
    .filter((line) => line !== '')
    .map(envPlace)
  const [first, second, third] = places
  if (first === undefined || second === undefined || third !== undefined)
    throw bootErrors.BOOT_ENV_CONFIG(`${places.length} copies of the environment, two are wanted`)
  if (first.size !== second.size)
    throw bootErrors.BOOT_ENV_CONFIG(`copies of ${first.size} and of ${second.size} bytes, one size is wanted`)
  return [first, second]
}

function envPlace(line: string): EnvPlace {
  const [device = '', offset = '', size = ''] = line.split(/\s+/)
  const number = (word: string): number => {
    const [, sign, digits] = /^(-?)(0x[0-9a-f]{1,12}|\d{1,15})$/i.exec(word) ?? []
    return digits === undefined ? Number.NaN : Number(digits) * (sign === '-' ? -1 : 1)
  }
  const place = { device, offset: number(offset), size: number(size) }
  if (!device.startsWith('/') || place.offset % SECTOR !== 0 || place.size % SECTOR !== 0)
    throw bootErrors.BOOT_ENV_CONFIG(`'${line}' is not DEVICE OFFSET SIZE with whole sectors of 512 bytes`)
  if (!(place.size > 0 && place.size <= MAX_SIZE))
    throw bootErrors.BOOT_ENV_CONFIG(`an environment of ${place.size} bytes, 512 to ${MAX_SIZE} are wanted`)
  if (/^\/dev\/mtd/.test(device))
    throw bootErrors.BOOT_ENV_CONFIG(`${device} is raw flash, which must be erased before it is written`)
  return place
}

/** The backend over a board's own environment. `reasons` keeps what the initramfs leaves behind, where there is a place. */
export function ownEnvironmentBackend(own: OwnEnvironment): BootBackend {
  const [first] = own.copies
  return {
    describe: () => ({
      name: 'uboot-environment',
      place: `the board's own U-Boot environment on ${first.device.name}`,
      maxTries: MAX_TRIES,
    }),
    read: async () => (await readOwn(own)).reading,
    write: async (state) => {
      const { reading, variables, source, flag } = await readOwn(own)
      if (reading.state !== undefined && checkState(state).generation <= reading.state.generation)
        throw bootErrors.BOOT_STATE_INVALID(
          `generation ${state.generation} is to replace ${reading.state.generation}: it must be higher`,
        )
      // What it counted before is not of the trial that begins; the environment's write is the one that arms.
      if (state.trial !== undefined && state.left > 0) await own.counter?.reset()
      await storeOwn(own, source, withState(variables, state, own.names, own.counter !== undefined), flag)
    },
    reason: async (): Promise<BootReason> => NO_REASON,
    // The board may count starts of a committed slot too: it gets its tries back here.
    clearReason: async (up) => {
      const { reading, variables, source, flag } = await readOwn(own)
      // It counts starts of a committed slot too.
      if (own.counter !== undefined && reading.state?.trial !== up && (await own.counter.read()) !== 0)
        await own.counter.reset()
      const [key, full] = fullTries(up, own.names)
      if (reading.state?.trial === up || (variables.get(key) ?? full) === full || source === undefined) return
      await storeOwn(own, source, new Map([...variables, [key, full]]), flag)
    },
    close: async () => {
      for (const device of new Set(own.copies.map((copy) => copy.device))) await device.close()
    },
  }
}

interface OwnReading {
  readonly reading: BackendReading
  readonly variables: ReadonlyMap<string, string>
  readonly source: 0 | 1 | undefined
  readonly flag: number
}

async function readOwn({ copies, names, counter }: OwnEnvironment): Promise<OwnReading> {
  const read = async (copy: OwnCopy): Promise<Environment | undefined> =>
    await readPieces(copy).then(
      (bytes) => decodeEnv(bytes, 'redundant'),
      () => undefined,
    )
  const pair = [await read(copies[0]), await read(copies[1])] as const
  const source = chooseEnv(pair)
  const env = source === undefined ? undefined : pair[source]
  const variables = env?.variables ?? new Map<string, string>()
  const torn = source !== undefined && pair.includes(undefined)
  const counted = counter !== undefined && isCounted(variables) ? await counter.read() : undefined
  return { reading: { state: ownState(variables, names, counted), torn }, variables, source, flag: env?.flag ?? 0 }
}

/** Into the copy that does not count: a write that is cut leaves the other one. Flushed and read back. */
async function storeOwn(
  { copies }: OwnEnvironment,
  source: 0 | 1 | undefined,
  variables: ReadonlyMap<string, string>,
  flag: number,
): Promise<void> {
  // Without any environment U-Boot's built-in one counts, of which nothing is known here.
  if (source === undefined)
    throw bootErrors.BOOT_STATE_READ('neither copy of the environment is good; run saveenv in U-Boot or fw_setenv -f')
  const copy = copies[source === 0 ? 1 : 0]
  const where = `the environment at ${copy.offset} on ${copy.device.name}`
  let bytes: Uint8Array
  try {
    bytes = encodeEnv({ variables, flag: nextFlag(flag) }, copy.size)
    for (let at = 0; at < copy.size; at += WINDOW)
      await copy.device.write(copy.offset + at, bytes.subarray(at, at + WINDOW))
    await copy.device.flush()
  } catch (cause) {
    throw bootErrors.BOOT_STATE_WRITE(`${where}: ${systemReason(cause)}`, { cause })
  }
  const back = await readPieces(copy).catch((cause: unknown) => {
    throw bootErrors.BOOT_STATE_NOT_STORED(`${where} cannot be read back: ${systemReason(cause)}`, { cause })
  })
  if (Buffer.compare(back, bytes) !== 0) throw bootErrors.BOOT_STATE_NOT_STORED(`${where} reads back other bytes`)
}

async function readPieces({ device, offset, size }: OwnCopy): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  for (let at = 0; at < size; at += WINDOW) pieces.push(await device.read(offset + at, Math.min(WINDOW, size - at)))
  return Buffer.concat(pieces)
}
