import { mountsToMake } from '../bundle/mounts.ts'
import { backingOf, readableByOf } from '../bundle/state.ts'
import type { System } from '../bundle/system.ts'
import { extraModules, type InitramfsOptions } from '../initramfs/build.ts'

/** What an image declares, as the builder of the initramfs takes it. Pure. */
export function initramfsOptions(system: System): InitramfsOptions {
  const { modules, owned, etc, state, watchdog, watchdogSeconds } = system
  return {
    modules,
    owned,
    transientEtc: etc.mode === 'transient',
    mounts: mountsToMake(system),
    state: {
      schema: state.schema,
      readableBy: readableByOf(state),
      seconds: state.seconds,
      migrations: state.migrations,
      kept: state.paths.flatMap((path) => backingOf(system, path) ?? []),
    },
    btrfs: state.btrfs,
    ...(watchdog === undefined ? {} : { watchdog, watchdogSeconds }),
  }
}

/** Kernel modules that an image needs beyond those of every device. */
export function declaredModules(system: System | undefined): readonly string[] {
  if (system === undefined) return []
  return [...system.modules, ...extraModules(initramfsOptions(system))]
}
