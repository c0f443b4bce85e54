import { bootstateImage } from '../../bootloader/bootstate.ts'
import { chooseCopy, decodeCopy } from '../../bootloader/grub-env.ts'
import { FILES } from '../../bootloader/layout.ts'
import { freshState, renew } from '../../bootloader/machine.ts'
import type { Core } from '../../device/agent/core.ts'
import { rollBackNow } from '../../device/agent/roll-back.ts'
import { cancelNow, commitNow, installFrom } from '../../device/agent/work.ts'
import { repairNow } from '../../device/repair/repair.ts'
import { Device, type DeviceParts } from './device.ts'
import { type DiskContent, type Entry, RecordedDisk, type Told } from './disk.ts'
import { type Release, type Releases, SLOT_BYTES } from './releases.ts'

/** What a device lives through; each story starts on the disk that the one before it left. */

export interface Recorded {
  readonly name: string
  readonly start: DiskContent
  readonly log: readonly Entry[]
  readonly told: Told
  /** What was booted, in order: slot, release, "?" for a try. */
  readonly boots: readonly string[]
}

interface Story {
  readonly name: string
  /** Boots that must be seen. */
  readonly boots: string
  readonly run: (device: Device) => Promise<void>
  /** Copies of the boot state that are damaged before it begins. */
  readonly damaged?: 'spare copy' | 'both copies'
}

const quiet = { force: false, onProgress: () => undefined }

/** @param hold it is committed by a person or not at all */
export function installing(counter: number, door = 'http://door', hold = false) {
  return (core: Core) => installFrom(core, `${door}/${counter}`, { ...quiet, hold }, new AbortController().signal)
}

/** Stops the install when half of the root file system is there. */
function interrupted(counter: number) {
  return async (core: Core) => {
    const stop = new AbortController()
    const onProgress = (progress: { phase: string; image: string | undefined; done: number; total: number }) => {
      if (progress.phase === 'fill' && progress.image === 'rootfs' && progress.done * 2 > progress.total) stop.abort()
    }
    await installFrom(core, `http://door/${counter}`, { force: false, onProgress }, stop.signal).catch(() => undefined)
  }
}

async function update(device: Device, counter: number, door?: string): Promise<void> {
  await device.powerOn(installing(counter, door))
  await device.settle()
}

export const STORIES: readonly Story[] = [
  { name: 'first boot', boots: 'a1', run: (d) => d.settle() },
  { name: 'update', boots: 'a1 b2?', run: (d) => update(d, 2) },
  { name: 'second update', boots: 'b2 a3?', run: (d) => update(d, 3, '/media/stick') },
  { name: 'fall back', boots: 'a3 b4? b4? b4? a3', run: (d) => update(d, 4) },
  { name: 'health refuse', boots: 'a3 b5? a3', run: (d) => update(d, 5) },
  {
    name: 'interrupted, then again',
    boots: 'a3 a3 b6? b6? b6? a3',
    run: async (d) => {
      await d.powerOn(interrupted(6))
      await update(d, 6)
    },
  },
  { name: 'root rotation', boots: 'a3 b7?', run: (d) => update(d, 7) },
  {
    name: 'roll back',
    boots: 'b7 a3? ',
    run: async (d) => {
      await d.powerOn(rollBackNow)
      await d.settle()
    },
  },
  {
    name: 'renewed copy',
    boots: 'a3 a3',
    damaged: 'spare copy',
    run: async (d) => {
      await d.powerOn(async (core) => {
        const state = await core.ports.boot.read()
        if (state !== undefined) await core.ports.boot.write(renew(state))
      })
      await d.settle()
    },
  },
  {
    name: 'repair',
    boots: 'a3 a3',
    damaged: 'both copies',
    run: async (d) => {
      await d.command((core) => repairNow(core, undefined, new AbortController().signal))
      await d.settle()
    },
  },
  { name: 'update after repair', boots: 'a3 b8?', run: (d) => update(d, 8) },
  {
    name: 'armed, then called off',
    boots: 'b8 b8',
    run: async (d) => {
      await d.powerOn(async (core) => {
        await installing(9)(core)
        await cancelNow(core)
      })
      await d.settle()
    },
  },
  {
    name: 'another over an armed one',
    boots: 'b8 a10?',
    run: async (d) => {
      await d.powerOn(async (core) => {
        await installing(9)(core)
        await installing(10)(core)
      })
      await d.settle()
    },
  },
  {
    name: 'commit by a person',
    boots: 'a10 b11? b11',
    run: async (d) => {
      await d.powerOn(installing(11, undefined, true))
      await d.powerOn(commitNow)
      await d.settle()
    },
  },
]

export async function provisioned(releases: Releases): Promise<DiskContent> {
  const slot = (release: Release | undefined, image: 'boot' | 'rootfs'): Buffer => {
    const bytes = Buffer.alloc(SLOT_BYTES[image])
    release?.content?.[image].copy(bytes)
    return bytes
  }
  const first = releases.get(1)
  return {
    parts: {
      bootstate: Buffer.from(await bootstateImage(freshState('a'))),
      'boot-a': slot(first, 'boot'),
      'rootfs-a': slot(first, 'rootfs'),
      'boot-b': slot(undefined, 'boot'),
      'rootfs-b': slot(undefined, 'rootfs'),
      data: Buffer.alloc(0),
    },
    files: new Map(),
  }
}

/** Lives the stories through, on a device made of `parts`; stops behind the one called `last`. */
export async function record(parts: DeviceParts, last?: string): Promise<Recorded[]> {
  const recorded: Recorded[] = []
  let start = await provisioned(parts.product.releases)
  let told: Told | undefined
  for (const { name, boots, run, damaged } of STORIES) {
    if (damaged !== undefined) start = damage(start, damaged)
    const device = new Device(start, parts, told)
    const before = device.disk.told()
    await run(device)
    const seen = device.boots.join(' ')
    if (parts.doubles === undefined && seen !== boots.trim())
      throw new Error(`story '${name}' went ${seen}, expected ${boots}\n${device.lines.join('\n')}`)
    recorded.push({ name, start, log: device.disk.log, told: before, boots: device.boots })
    start = device.disk.settled()
    told = device.disk.told()
    if (name === last) break
  }
  return recorded
}

function damage(start: DiskContent, what: 'spare copy' | 'both copies'): DiskContent {
  const { parts, files } = new RecordedDisk(start).settled()
  const copy = (n: 0 | 1) => decodeCopy(parts.bootstate.subarray(FILES[n].offset, FILES[n].offset + 1024))
  const spare = chooseCopy([copy(0), copy(1)]) === 0 ? 1 : 0
  for (const n of what === 'both copies' ? ([0, 1] as const) : ([spare] as const))
    parts.bootstate.fill(0xa5, FILES[n].offset, FILES[n].offset + 4096)
  return { parts, files }
}
