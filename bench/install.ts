import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { finishBuild } from '../bundle/build.ts'
import { treeSize } from '../bundle/tree.ts'
import { installAlone, installByAgent } from './device.ts'
import { forget, type LoopDevice, makeLoop, noLoop } from './loop.ts'
import { type Measured, tool } from './measure.ts'
import { startRauc } from './rauc.ts'
import { type Goal, goal, type Report, type Row, rowOf } from './report.ts'
import { makeSwupdate } from './swupdate.ts'
import { imagesOf, PRODUCT, type Release, type Workshop } from './workshop.ts'

/** A local bundle into slots on loop devices, against `rauc install` and SWUpdate with the same two images; then by size. */
export async function benchInstall(
  workshop: Workshop,
  runs: number,
  sizesMiB: readonly number[],
  sizeRuns: number,
): Promise<Report> {
  const skipped = await noLoop()
  if (skipped !== undefined) return { name: 'install', runs: 0, skipped, rows: [], goals: [], notes: [] }
  const compared = await againstRauc(workshop, runs)
  const bySize: BySize[] = []
  for (const mib of sizesMiB) bySize.push(await incompressible(workshop, mib, sizeRuns))
  return {
    ...compared,
    rows: [...compared.rows, ...bySize.flatMap(({ byAgent, alone, theirs }) => [byAgent, alone, theirs])],
    goals: [
      ...compared.goals,
      ...memoryGoals('agent and command', [compared.rows[0], ...bySize.map(({ byAgent }) => byAgent)]),
      ...memoryGoals('no agent', [compared.rows[1], ...bySize.map(({ alone }) => alone)]),
    ],
  }
}

/** @param rows the comparison's, then by size, ascending */
function memoryGoals(who: string, [first, ...rows]: readonly (Row | undefined)[]): readonly Goal[] {
  const peaks = rows.map((row) => row?.peakMiB ?? 0)
  const most = goal(`peak memory, ${who}, every install here`, Math.max(first?.peakMiB ?? 0, ...peaks), 'MiB', 150)
  if (peaks.length < 2) return [most]
  const growth = (peaks.at(-1) ?? 0) / (peaks[0] ?? 1)
  return [most, goal(`peak memory, ${who}, largest image against smallest`, growth, '', 1.1)]
}

async function againstRauc(workshop: Workshop, runs: number): Promise<Report> {
  const release = await workshop.release()
  const folder = join(workshop.folder, 'install')
  await mkdir(folder)
  const found = await withSlots(folder, await slotSizes(release.build), (loops) =>
    pairs(workshop, folder, release, loops, runs, true),
  )
  const byAgent = rowOf('bistable install, the agent runs', found.byAgent)
  const alone = rowOf('bistable install, no agent', found.alone)
  const their = rowOf('rauc install', found.theirs)
  const raw = found.swupdate.length === 0 ? undefined : rowOf('swupdate raw handler, then sync', found.swupdate)
  const ratio = (ours: Row, row: Row): number => (ours.seconds?.median ?? 0) / (row.seconds?.median ?? 1)
  const minima = (ours: Row): string => ((ours.seconds?.min ?? 0) / (their.seconds?.min ?? 1)).toFixed(2)
  const total = (await imagesOf(release.build)).reduce((sum, { length }) => sum + length, 0)
  return {
    name: 'install',
    runs,
    rows: [byAgent, alone, their, ...(raw === undefined ? [] : [raw])],
    goals: [
      goal('wall time by the agent, against rauc', ratio(byAgent, their), '', 0.8),
      ...(raw === undefined ? [] : [goal('the same, against swupdate', ratio(byAgent, raw), '', 0.8)]),
      goal('wall time without an agent, against rauc', ratio(alone, their), '', 1.0),
      ...(raw === undefined ? [] : [goal('the same, against swupdate', ratio(alone, raw), '', 0.8)]),
    ],
    notes: [
      `${(total / 2 ** 20).toFixed(0)} MiB of images; slots full of other bytes; bundle and slots not in the page cache`,
      `ratios of minima against rauc: by the agent ${minima(byAgent)}, without ${minima(alone)}`,
      ...(raw === undefined ? ['swupdate is not installed: no row'] : []),
    ],
  }
}

interface Found {
  readonly byAgent: Measured[]
  readonly alone: Measured[]
  readonly theirs: Measured[]
  readonly swupdate: Measured[]
}

interface BySize {
  readonly byAgent: Row
  readonly alone: Row
  readonly theirs: Row
}

/** All install the same two images into the same slots, by turns, each time over other bytes. */
async function pairs(
  workshop: Workshop,
  folder: string,
  { build, bundle }: Release,
  loops: Loops,
  runs: number,
  withSwupdate: boolean,
): Promise<Found> {
  const slots = pathsOf(loops)
  const old = join(folder, 'old')
  await tool('dd', ['if=/dev/urandom', `of=${old}`, 'bs=1M', `count=${loops.b.rootfs.size / 2 ** 20}`, 'status=none'])
  const rauc = await startRauc(join(folder, 'rauc'), slots)
  try {
    const images = { boot: join(build, 'boot.img'), rootfs: join(build, 'rootfs.img') }
    const raucb = await rauc.bundle(images)
    const third = withSwupdate ? await makeSwupdate(join(folder, 'swupdate'), slots.b, images) : undefined
    const prepare = async (file: string): Promise<void> => {
      await loops.b.boot.fillFrom(old)
      await loops.b.rootfs.fillFrom(old)
      await forget(file)
    }
    const found: Found = { byAgent: [], alone: [], theirs: [], swupdate: [] }
    for (let run = 0; run < runs; run++) {
      workshop.say(`install: run ${run + 1} of ${runs}`)
      await prepare(raucb)
      found.theirs.push(await rauc.install(raucb))
      await compare(loops, build)
      await prepare(bundle)
      found.byAgent.push(await installByAgent(workshop, slots, bundle))
      await compare(loops, build)
      await prepare(bundle)
      found.alone.push(await installAlone(workshop, slots, bundle))
      await compare(loops, build)
      if (third !== undefined) {
        await prepare(third.file)
        found.swupdate.push(await third.install())
        await compare(loops, build)
      }
      // Told as it comes: a run that is stopped half-way has not been for nothing.
      const last = Object.entries(found).flatMap(([name, some]: [string, Measured[]]) => {
        const one = some.at(-1)
        return one === undefined ? [] : [`${name} ${one.seconds.toFixed(2)} s ${one.peakMiB.toFixed(0)} MiB`]
      })
      workshop.say(`install: ${last.join(', ')}`)
    }
    return found
  } finally {
    await rauc.stop()
  }
}

/** Installs of an image that does not compress: how time and memory follow the size. */
async function incompressible(workshop: Workshop, mib: number, runs: number): Promise<BySize> {
  workshop.say(`install: an image of ${mib} MiB`)
  const folder = join(workshop.folder, `install-${mib}`)
  const build = join(folder, 'release.build')
  const bundle = join(folder, 'release.bundle')
  await mkdir(build, { recursive: true })
  for (const [name, count] of [
    ['rootfs', mib],
    ['boot', 16],
  ] as const)
    await tool('dd', ['if=/dev/urandom', `of=${join(build, `${name}.img`)}`, 'bs=1M', `count=${count}`, 'status=none'])
  await finishBuild(build, {
    release: {
      product: PRODUCT,
      hardware: ['qemu-x86_64'],
      number: { epoch: 1, counter: 1 },
      version: '1.0.0',
      securityFloor: { epoch: 0, counter: 0 },
      rootVersion: 1,
      issued: '2025-11-21T00:00:00Z',
    },
    attachments: { inventory: Buffer.from('{"path":"/"}\n') },
  })
  await workshop.signAndPack(build, bundle)
  const found = await withSlots(folder, await slotSizes(build), async (loops) => {
    const { theirs, byAgent, alone } = await pairs(workshop, folder, { build, bundle }, loops, runs, false)
    return {
      byAgent: rowOf(`bistable install, the agent runs, ${mib} MiB of random bytes`, byAgent),
      alone: rowOf(`bistable install, no agent, ${mib} MiB of random bytes`, alone),
      theirs: rowOf(`rauc install, ${mib} MiB of random bytes`, theirs),
    }
  })
  await tool('rm', ['-r', folder])
  return found
}

type Loops = Readonly<Record<'a' | 'b', Readonly<Record<'boot' | 'rootfs', LoopDevice>>>>

const pathsOf = (loops: Loops) => ({
  a: { boot: loops.a.boot.path, rootfs: loops.a.rootfs.path },
  b: { boot: loops.b.boot.path, rootfs: loops.b.rootfs.path },
})

async function slotSizes(build: string): Promise<Readonly<Record<'boot' | 'rootfs', number>>> {
  const sizes = { boot: 0, rootfs: 0 }
  for (const { name, length } of await imagesOf(build))
    if (name === 'boot' || name === 'rootfs') sizes[name] = length + treeSize(length)
  return sizes
}

async function withSlots<T>(
  folder: string,
  sizes: Readonly<Record<'boot' | 'rootfs', number>>,
  use: (loops: Loops) => Promise<T>,
): Promise<T> {
  const made: LoopDevice[] = []
  const make = async (name: string, bytes: number): Promise<LoopDevice> => {
    const loop = await makeLoop(join(folder, name), bytes)
    made.push(loop)
    return loop
  }
  try {
    return await use({
      a: { boot: await make('boot-a', sizes.boot), rootfs: await make('rootfs-a', sizes.rootfs) },
      b: { boot: await make('boot-b', sizes.boot), rootfs: await make('rootfs-b', sizes.rootfs) },
    })
  } finally {
    for (const loop of made) await loop.detach()
  }
}

/** A fast install of the wrong bytes is worth nothing. */
async function compare(loops: Loops, build: string): Promise<void> {
  for (const { name, length } of await imagesOf(build))
    await tool('cmp', [
      '-n',
      String(length),
      join(build, `${name}.img`),
      loops.b[name === 'boot' ? 'boot' : 'rootfs'].path,
    ])
}
