import type { BootBackend } from '../../bootloader/backend.ts'
import { openBootState } from '../../bootloader/bootstate.ts'
import type { GivenPlaces } from './places.ts'

/** Which bootloader keeps this device's boot state. */

export interface BackendEdge {
  /** Path of the partition named `bootstate` on the running disk. Throws SLOT_MISSING, SLOT_DISK_UNKNOWN. */
  readonly findBootstate: () => Promise<string>
}

type Settings = NonNullable<GivenPlaces['boot']>
type Openers = {
  readonly [Kind in Settings['kind']]: (
    settings: Extract<Settings, { kind: Kind }>,
    edge: BackendEdge,
  ) => Promise<BootBackend>
}

/** One line per `kind` of `boot` in places.json. */
const OPENERS: Openers = {
  partition: async ({ path }, { findBootstate }) => openPartition(path ?? (await findBootstate())),
}

/** The backend that places.json names, else the boot state partition. Throws what the backend's `open` throws. */
export async function openBackend(given: GivenPlaces | undefined, edge: BackendEdge): Promise<BootBackend> {
  const settings: Settings = given?.boot ?? {
    kind: 'partition',
    ...(given?.bootstate === undefined ? {} : { path: given.bootstate }),
  }
  return await OPENERS[settings.kind](settings, edge)
}

/** A boot state partition says itself which bootloader reads it. */
async function openPartition(path: string): Promise<BootBackend> {
  return await openBootState(path)
}
