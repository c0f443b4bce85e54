import { systemReason } from '../base/errors.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import { bootErrors } from './errors.ts'
import { checkState, MAX_GENERATION } from './machine.ts'
import type { RawDevice } from './raw-device.ts'
import { type BootReason, NO_REASON } from './reason.ts'
import { type BootState, DEFAULT_TRIES, MAX_TRIES, otherSlot, type Slot } from './state.ts'
import { chooseEnv, decodeEnv, type Environment, encodeEnv, nextFlag } from './uboot-env.ts'

/**
 * A board's own U-Boot environment, where its own script reads BOOT_ORDER and BOOT_x_LEFT as RAUC's example script does:
 * it boots the first slot of BOOT_ORDER that has tries left and takes one away, of a committed slot too.
 */

export interface EnvPlace {
  readonly device: string
  /** Bytes from the start, or, negative, from the end of the device. */
  readonly offset: number
  readonly size: number
}

export interface OwnEnvironment {
  /** Two places on opened devices. */
  readonly copies: readonly [OwnCopy, OwnCopy]
  /** What the board's script calls the slots. */
  readonly names: Readonly<Record<Slot, string>>
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

/** The state in a board's variables; undefined when BOOT_ORDER names none of the two slots. */
export function ownState(
  variables: ReadonlyMap<string, string>,
  names: OwnEnvironment['names'],
): BootState | undefined {
  const slotOf = (word: string | undefined): Slot | undefined =>
    word === names.a ? 'a' : word === names.b ? 'b' : undefined
  const order = (variables.get('BOOT_ORDER') ?? '').split(/\s+/).map(slotOf)
  const first = order.find((slot) => slot !== undefined)
  if (first === undefined) return undefined
  const left = (slot: Slot): number => {
    const text = variables.get(`BOOT_${names[slot]}_LEFT`) ?? ''
    // Written with %x.
    return /^(?:0x)?[0-9a-f]{1,2}$/i.test(text) ? Math.min(MAX_TRIES, Number.parseInt(text, 16)) : 0
  }
  const digits = variables.get('BISTABLE_GENERATION') ?? ''
  const generation = /^\d{1,10}$/.test(digits) ? Math.min(Number(digits), MAX_GENERATION - 1) : 0
  // A board that another updater brought up has no such note: what it boots first was committed.
  const primary = slotOf(variables.get('BISTABLE_PRIMARY')) ?? first
  if (first !== primary) return { generation, primary, trial: first, left: left(first), spare: false }
  const other = otherSlot(primary)
  return { generation, primary, trial: undefined, left: 0, spare: order.includes(other) && left(other) > 0 }
}

/** The board's variables with `state` put in; everything else stays. */
export function withState(
  variables: ReadonlyMap<string, string>,
  state: BootState,
  names: OwnEnvironment['names'],
): ReadonlyMap<string, string> {
  const { generation, primary, trial, left, spare } = checkState(state)
  const other = otherSlot(primary)
  const order = trial !== undefined ? [trial, primary] : spare ? [primary, other] : [primary]
  const otherLeft = trial !== undefined ? left : spare ? DEFAULT_TRIES : 0
  return new Map([
    ...variables,
    ['BOOT_ORDER', order.map((slot) => names[slot]).join(' ')],
    [`BOOT_${names[primary]}_LEFT`, DEFAULT_TRIES.toString(16)],
    [`BOOT_${names[other]}_LEFT`, otherLeft.toString(16)],
    ['BISTABLE_PRIMARY', names[primary]],
    ['BISTABLE_GENERATION', String(generation)],
  ])
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
      await storeOwn(own, source, withState(variables, state, own.names), flag)
    },
    reason: async (): Promise<BootReason> => NO_REASON,
    // The board's script takes a try away at each boot, also of a committed slot: it gets them back here.
    clearReason: async (up) => {
      const { reading, variables, source, flag } = await readOwn(own)
      const key = `BOOT_${own.names[up]}_LEFT`
      const full = DEFAULT_TRIES.toString(16)
      if (reading.state?.trial === up || variables.get(key) === full || source === undefined) return
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

async function readOwn({ copies, names }: OwnEnvironment): Promise<OwnReading> {
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
  return { reading: { state: ownState(variables, names), torn }, variables, source, flag: env?.flag ?? 0 }
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
