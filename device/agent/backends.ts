import type { BootBackend } from '../../bootloader/backend.ts'
import { bareboxBackend } from '../../bootloader/barebox.ts'
import { commandCounter } from '../../bootloader/boot-counter.ts'
import { bootStateOn, checkLayout, openWhole } from '../../bootloader/bootstate.ts'
import { commandBackend } from '../../bootloader/command-backend.ts'
import { efiBackend } from '../../bootloader/efi-variables.ts'
import type { BootImage } from '../../bootloader/fat-read.ts'
import type { GptPartition } from '../../bootloader/gpt.ts'
import { reasonPlace } from '../../bootloader/reason-place.ts'
import { type BootRepairer, grubRepairer } from '../../bootloader/repair.ts'
import { runBounded } from '../../bootloader/run-bounded.ts'
import { sdbootBackend } from '../../bootloader/sdboot.ts'
import type { Slot } from '../../bootloader/state.ts'
import { flagAt, trybootBackend } from '../../bootloader/tryboot.ts'
import { isUbootPartition, ubootStateOn } from '../../bootloader/uboot.ts'
import { openOwnEnvironment } from '../../bootloader/uboot-own-open.ts'
import { hasUbootRemains, ubootRepairer } from '../../bootloader/uboot-repair.ts'
import { deviceErrors } from '../errors.ts'
import type { GivenPlaces } from './places.ts'

/** Which bootloader keeps this device's boot state. */

export interface BackendEdge {
  /** Path of the partition named `bootstate` on the running disk. Throws SLOT_MISSING, SLOT_DISK_UNKNOWN. */
  readonly findBootstate: () => Promise<string>
  /** A guess for a partition that says nothing any more. */
  readonly startedByUboot: () => boolean
  /** Opens the boot image of a slot, for reading. */
  readonly bootImage: (slot: Slot) => Promise<BootImage>
  /** The partition `boot-a` or `boot-b` in the table of the running disk. */
  readonly bootPartition: (slot: Slot) => Promise<GptPartition>
}

type Settings = NonNullable<GivenPlaces['boot']>
type Openers = {
  readonly [Kind in Settings['kind']]: (
    settings: Extract<Settings, { kind: Kind }>,
    edge: BackendEdge,
  ) => Promise<BootBackend>
}

/** Set by the firmware of a Raspberry Pi in the boot that its flag led to. */
const TRYBOOT_FLAG = '/proc/device-tree/chosen/bootloader/tryboot'

/** One line per `kind` of `boot` in places.json. */
const OPENERS: Openers = {
  partition: async ({ path }, { findBootstate }) => openPartition(path ?? (await findBootstate())),
  'systemd-boot': async ({ esp }, { bootImage, findBootstate }) =>
    sdbootBackend({ esp, bootImage, reasons: reasonPlace(findBootstate) }),
  'efi-variables': async ({ folder }, { bootImage, bootPartition, findBootstate }) =>
    efiBackend({ folder, bootImage, partition: bootPartition, reasons: reasonPlace(findBootstate) }),
  barebox: async (settings, { findBootstate }) => bareboxBackend({ ...settings, reasons: reasonPlace(findBootstate) }),
  tryboot: async (settings, { findBootstate }) =>
    trybootBackend({ ...settings, inTryboot: () => flagAt(TRYBOOT_FLAG), reasons: reasonPlace(findBootstate) }),
  'uboot-environment': async ({ config, names, slotVariable, counter }) =>
    openOwnEnvironment(config, {
      names: { ...names, ...(slotVariable === undefined ? {} : { slotVariable }) },
      ...(counter && { counter: commandCounter({ ...counter, timeMs: counter.seconds * 1000 }, runBounded) }),
    }),
  command: async ({ seconds, ...options }) => commandBackend({ ...options, timeMs: seconds * 1000 }, runBounded),
}

function settingsOf(given: GivenPlaces | undefined): Settings {
  const path = given?.bootstate === undefined ? {} : { path: given.bootstate }
  return given?.boot ?? { kind: 'partition', ...path }
}

/** The backend that places.json names, else the boot state partition. Throws what the backend's `open` throws. */
export async function openBackend(given: GivenPlaces | undefined, edge: BackendEdge): Promise<BootBackend> {
  const settings = settingsOf(given)
  // Each opener gets the settings of its own kind: that is what indexing by kind means.
  const open = OPENERS[settings.kind] as (settings: Settings, edge: BackendEdge) => Promise<BootBackend>
  return await open(settings, edge)
}

/**
 * What repairs this device's boot state, whatever condition it is in.
 * Throws REPAIR_UNSUPPORTED unless it is in a partition of its own, BOOT_STATE_READ, SLOT_MISSING.
 */
export async function openRepairer(given: GivenPlaces | undefined, edge: BackendEdge): Promise<BootRepairer> {
  const settings = settingsOf(given)
  if (settings.kind !== 'partition') throw deviceErrors.REPAIR_UNSUPPORTED(`the boot state is kept by ${settings.kind}`)
  const device = await openWhole(settings.path ?? (await edge.findBootstate()))
  if (await hasUbootRemains(device)) return ubootRepairer(device)
  // Nothing of either is left: a device tree without UEFI is how U-Boot starts a kernel.
  return grubRemains(await device.read(0, 512).catch(() => undefined)) || !edge.startedByUboot()
    ? grubRepairer(device)
    : ubootRepairer(device)
}

const grubRemains = (sector: Uint8Array | undefined): boolean =>
  Buffer.from(sector ?? [])
    .subarray(3, 11)
    .toString('latin1') === 'BISTABLE'

/** A boot state partition says itself which bootloader reads it. */
async function openPartition(path: string): Promise<BootBackend> {
  const device = await openWhole(path)
  try {
    if (await isUbootPartition(device).catch(() => false)) return ubootStateOn(device)
    await checkLayout(device)
    return bootStateOn(device)
  } catch (error) {
    await device.close()
    throw error
  }
}
