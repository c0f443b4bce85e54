import { mkdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type Measured, measure, tool } from './measure.ts'
import { mksquashfsOptions } from './publish.ts'
import { goal, type Report, rowOf } from './report.ts'
import type { Workshop } from './workshop.ts'

/** Our SquashFS writer against `mksquashfs` on the same tree at the same settings: size and time, in turns. */
export async function benchSquashfs(workshop: Workshop, runs: number): Promise<Report> {
  const folder = join(workshop.folder, 'squashfs')
  const tree = join(folder, 'tree')
  const our = join(folder, 'ours.squashfs')
  const their = join(folder, 'theirs.squashfs')
  await mkdir(folder)
  const image = await workshop.image()
  const script = join(import.meta.dirname, 'write-squashfs.ts')
  const ours: Measured[] = []
  const theirs: Measured[] = []
  let bytes = 0
  for (let run = 0; run < runs; run++) {
    workshop.say(`squashfs: run ${run + 1} of ${runs}`)
    const args = ['--import', 'tsx', script, image, our, String(workshop.level), '131072']
    const written = JSON.parse(await tool(process.execPath, args)) as Measured & { readonly size: number }
    ours.push({ ...written, out: '' })
    bytes = written.size
    if (run === 0) await tool('unsquashfs', ['-quiet', '-no-progress', '-d', tree, our])
    await rm(their, { force: true })
    theirs.push(await measure('mksquashfs', [tree, their, ...mksquashfsOptions(workshop.level)]))
  }
  const rows = [rowOf('our writer', ours), rowOf('mksquashfs', theirs)]
  const [mine, other] = rows
  const { size } = await stat(their)
  await rm(folder, { recursive: true })
  return {
    name: 'squashfs',
    runs,
    rows,
    goals: [
      goal('size, ratio', bytes / size, '', 1.02),
      goal('wall time, ratio of medians', (mine?.seconds?.median ?? 0) / (other?.seconds?.median ?? 1), '', 1.15),
      goal('peak memory of our process, merging included', mine?.peakMiB ?? 0, 'MiB', 512),
    ],
    notes: [
      `${workshop.flavour} system; ours ${bytes} bytes, mksquashfs ${size}`,
      `ratio of minima ${((mine?.seconds?.min ?? 0) / (other?.seconds?.min ?? 1)).toFixed(2)}`,
      `mksquashfs ${mksquashfsOptions(workshop.level).join(' ')}`,
    ],
  }
}
