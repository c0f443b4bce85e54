import { join } from 'node:path'
import { nodeFiles } from '../../base/durable.ts'
import { fileSource } from '../../bundle/file-source.ts'
import type { AddonMounts } from '../../device/addons/mounts.ts'
import { AddonStarts } from '../../device/addons/starts.ts'
import { AddonStore } from '../../device/addons/store.ts'
import type { Core } from '../../device/agent/core.ts'
import { digestOf, World } from '../device-agent/world.ts'
import { drop, scratchFolder } from './made.ts'

/** A device that takes add-ons, with the kernel's part in memory. */

/** The digest of the release that it runs. */
export const RUNNING = digestOf({ counter: 2 })

/** The kernel's part, in memory. */
export class Over implements AddonMounts {
  names: readonly string[] = []
  /** How often it was asked for other names. */
  changes = 0
  broken = ''
  active = async () => this.names
  merge: AddonMounts['merge'] = async (addons) => {
    const names = addons.map(({ name }) => name).filter((name) => name !== this.broken)
    if (names.join() !== this.names.join()) this.changes++
    this.names = names
    const failed = addons.filter(({ name }) => name === this.broken)
    return new Map(failed.map(({ name }) => [name, new Error('mount: wrong fs type')]))
  }
}

interface Device {
  readonly world: World
  readonly core: Core
  readonly over: Over
  readonly store: AddonStore
}

/** An agent at rest, that opens files of this machine. */
export async function onDevice(
  work: (device: Device) => Promise<void>,
  change: (world: World) => void = () => undefined,
) {
  const data = scratchFolder()
  const world = new World({ counter: 2 })
  world.agentConfig = {}
  world.addons = {
    store: new AddonStore(join(data, 'addons'), nodeFiles),
    mounts: new Over(),
    starts: new AddonStarts(join(data, 'addons/.starts'), nodeFiles),
  }
  change(world)
  let failed: unknown
  try {
    await world.powerOn(100, async (core) => {
      world.held = true
      const { open } = core.ports.engine
      // Add-ons are files of this machine, bundles are the world's.
      core.ports.engine.open = (from, signal) => (world.published.has(from) ? open(from, signal) : fileSource(from))
      const device = { world, core, over: world.addons?.mounts as Over, store: world.addons?.store as AddonStore }
      await work(device).catch((error: unknown) => {
        failed = error
      })
      world.held = false
    })
  } finally {
    drop(data)
  }
  if (failed !== undefined) throw failed
}
