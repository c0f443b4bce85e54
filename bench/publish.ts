import { mkdir, rm } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import type { Measured } from './measure.ts'
import { measure, tool } from './measure.ts'
import { goal, type Report, rowOf } from './report.ts'
import { buildOnce, imagesOf, type Release, type Workshop } from './workshop.ts'

/** From an OCI image to a signed bundle, against `mksquashfs` alone on the same tree, already unpacked. */
export async function benchPublish(workshop: Workshop, runs: number): Promise<Report> {
  const folder = join(workshop.folder, 'publish')
  const tree = join(folder, 'tree')
  const squashfs = join(folder, 'alone.squashfs')
  await mkdir(folder)
  const ours: Measured[] = []
  const theirs: Measured[] = []
  let release: Release | undefined
  for (let run = 0; run < runs; run++) {
    workshop.say(`publish: run ${run + 1} of ${runs}`)
    const made = await buildOnce(workshop, `${folder}-ours`)
    release = made.release
    ours.push(made.measured)
    // The tree that mksquashfs gets is exactly the one that we packed: no kernel, the agent in.
    if (run === 0) await tool('unsquashfs', ['-quiet', '-no-progress', '-d', tree, join(release.build, 'rootfs.img')])
    await rm(squashfs, { force: true })
    theirs.push(await measure('mksquashfs', [tree, squashfs, ...mksquashfsOptions(workshop.level)]))
  }
  if (release === undefined) throw new RangeError('wanted at least one run')
  workshop.keepRelease(release)
  const images = await imagesOf(release.build)
  const mib = (name: string) => ((images.find((image) => image.name === name)?.length ?? 0) / 2 ** 20).toFixed(0)
  const size = Number(await tool('du', ['-s', '--apparent-size', '-m', tree]).then((text) => text.split('\t')[0]))
  await rm(tree, { recursive: true })
  const rows = [rowOf('bistable build, sign, pack', ours), rowOf('mksquashfs alone', theirs)]
  const [our, their] = rows
  return {
    name: 'publish',
    runs,
    rows,
    goals: [
      goal('wall time, ratio of medians', (our?.seconds?.median ?? 0) / (their?.seconds?.median ?? 1), '', 1.3),
      goal('peak memory, all processes', our?.peakMiB ?? 0, 'MiB', 512),
    ],
    notes: [
      `${workshop.flavour} system, ${size} MiB of files; images: rootfs ${mib('rootfs')} MiB, boot ${mib('boot')} MiB`,
      `ratio of minima ${((our?.seconds?.min ?? 0) / (their?.seconds?.min ?? 1)).toFixed(2)}`,
      `mksquashfs ${mksquashfsOptions(workshop.level).join(' ')}; ours at the same block size and level`,
    ],
  }
}

/** Those of publisher/squashfs/mksquashfs.ts, but for what only a tar stream needs. */
export function mksquashfsOptions(level: number): string[] {
  const processors = String(availableParallelism())
  // biome-ignore format: option and value stand together
  return ['-comp', 'zstd', '-Xcompression-level', String(level), '-b', '131072', '-reproducible',
    '-processors', processors, '-mem', '160M', '-no-progress', '-quiet']
}
