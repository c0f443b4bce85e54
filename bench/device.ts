import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bootstateImage } from '../bootloader/bootstate.ts'
import { freshState } from '../bootloader/machine.ts'
import { type Measured, measure } from './measure.ts'
import { PRODUCT, type Workshop } from './workshop.ts'

type Slots = Readonly<Record<'a' | 'b', Readonly<Record<'boot' | 'rootfs', string>>>>

/** `bistable install FILE` as on a device that runs slot a: the agent's own file, its own Node.js, a new device each time. */
export async function installOnce(workshop: Workshop, slots: Slots, bundle: string): Promise<Measured> {
  const root = join(workshop.folder, 'device')
  await rm(root, { recursive: true, force: true })
  for (const path of ['usr/lib/bistable', 'etc/bistable', 'proc', 'data/bistable', 'run/bistable'])
    await mkdir(join(root, path), { recursive: true })
  const bootstate = join(root, 'bootstate')
  await writeFile(bootstate, await bootstateImage(freshState('a')))
  await writeFile(join(root, 'etc/bistable/places.json'), JSON.stringify({ bootstate, slots }))
  const system = { product: PRODUCT, hardware: ['qemu-x86_64'] }
  await writeFile(join(root, 'usr/lib/bistable/system.json'), JSON.stringify(system))
  await copyFile(workshop.rootStatement, join(root, 'usr/lib/bistable/root.json'))
  const line =
    'bistable.slot=a bistable.release=1.0 bistable.floor=0.0 bistable.boot=committed bistable.left=0 bistable.why=ok'
  await writeFile(join(root, 'proc/cmdline'), `${line}\n`)
  const { node, agent } = workshop.device
  // A device has no certificates of a build machine for Node.js to read at each start.
  const env = { BISTABLE_ROOT: root, NODE_EXTRA_CA_CERTS: '', NODE_OPTIONS: '' }
  return await measure(node, [agent, 'install', bundle, '--json'], { env })
}
