import type { Files } from '../../base/durable.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { Paths } from '../config.ts'
import { StateOfDevice } from '../state/state.ts'
import type { BootLine } from './cmdline.ts'
import { slotsOfDevice } from './engine.ts'
import type { GivenPlaces } from './places.ts'
import type { Engine, Ports, Processes } from './ports.ts'

/** Puts the state between a verified slot and its arming, and behind a commit. */

export function makeState(paths: Paths, files: Files, processes: Processes): StateOfDevice {
  return new StateOfDevice({ partition: paths.partition, data: paths.data, run: paths.run }, files, processes)
}

/** What reads images is imported when asked for: most commands arm nothing. */
export function withState(engine: Engine, state: StateOfDevice, paths: Paths, given: GivenPlaces | undefined): Engine {
  return {
    ...engine,
    install: (call) =>
      engine.install({
        ...call,
        beforeArm: async () => {
          const { checkState } = await import('./check-state.ts')
          await checkState(state, slotsOfDevice(given), call.running, call.head.statement, paths.root)
          await call.beforeArm()
        },
      }),
  }
}

/**
 * After a commit nothing of the state is undone any more, and snapshots beyond those that the image wants kept go. Where this
 * fails, the next start of the initramfs does it.
 * @throws STATE_WRITE_FAILED
 */
export async function stateCommitted(
  { state, config, say }: Pick<Ports, 'state' | 'config' | 'say'>,
  { slot, release }: Pick<BootLine, 'slot' | 'release'>,
): Promise<void> {
  await state?.committed(slot, formatNumber(release))
  for (const name of (await state?.prune(config.state.snapshots)) ?? []) say(`bistable: snapshot ${name} dropped`)
}
