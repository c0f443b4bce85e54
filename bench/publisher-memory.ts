import { chmod, copyFile, mkdir, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { debianBase } from '../demo/images.ts'
import { systemFile } from './delta/images.ts'
import { type Measured, tool } from './measure.ts'
import { goal, type Report, rowOf } from './report.ts'
import { PRODUCT, type Workshop } from './workshop.ts'

/**
 * What `bistable build` takes of memory as images grow: a Debian system and so many GiB of files that do not compress, by
 * level 1, since the level changes the time and no buffer. Needs three times the largest size on the disk.
 */
export async function benchPublisherMemory(workshop: Workshop, sizes: readonly number[]): Promise<Report> {
  const built: { readonly gib: number; readonly measured: Measured; readonly image: number }[] = []
  for (const gib of sizes) {
    const folder = join(workshop.folder, 'memory')
    await mkdir(folder)
    const tar = await largeSystem(folder, gib, workshop)
    workshop.say(`publisher-memory: build of ${gib} GiB`)
    const out = join(folder, 'large.build')
    const node = join(folder, 'node')
    await writeFile(node, '#!/bin/sh\necho stands for Node.js\n')
    await chmod(node, 0o755)
    const parts = ['--agent', dirname(workshop.device.agent), '--node', node]
    const about = ['--system', await systemFile(folder, PRODUCT), '--root', workshop.rootStatement]
    const release = ['--version', '1', '--counter', '1', '--level', '1']
    const measured = await workshop.bistable([
      'build',
      `rootfs:${tar}`,
      '--output',
      out,
      ...release,
      ...parts,
      ...about,
    ])
    built.push({ gib, measured, image: (await stat(join(out, 'rootfs.img'))).size })
    await rm(folder, { recursive: true })
  }
  const rows = built.map(({ gib, measured, image }) => ({ ...rowOf(`${gib} GiB`, [measured]), bytes: image }))
  const [least, most] = [rows[0], rows.at(-1)]
  const flat = (most?.peakMiB ?? 0) / (least?.peakMiB ?? 1)
  const pace = ({ measured, image }: (typeof built)[number]): number => measured.cpuSeconds / image
  const [first, last] = [built[0], built.at(-1)]
  return {
    name: 'publisher-memory',
    runs: 1,
    rows,
    goals: [
      ...rows.map(({ what, peakMiB }) => goal(`peak memory, ${what}`, peakMiB ?? 0, 'MiB', 512)),
      ...(first === undefined || last === undefined || first === last
        ? []
        : [
            goal('peak memory, largest against smallest', flat, '', 1.25),
            goal('CPU for a byte of image, largest against smallest', pace(last) / pace(first), '', 1.25),
          ]),
    ],
    notes: ['the whole of `bistable build`: reading, merging, writing, reading back, inventory, chunks; level 1'],
  }
}

/** The tar of a Debian system with so much noise in it, in files of 1 GiB or what is left. */
async function largeSystem(folder: string, gib: number, workshop: Workshop): Promise<string> {
  const { second } = await debianBase(workshop.say)
  const tar = join(folder, 'large.tar')
  await copyFile(second, tar)
  const tree = join(folder, 'tree')
  await mkdir(join(tree, 'opt'), { recursive: true })
  for (let n = 0; n < gib; n++) {
    const file = join(tree, 'opt', `noise-${n}`)
    const bytes = Math.round(Math.min(1, gib - n) * 2 ** 30)
    const key = n.toString(16).padStart(32, '0')
    const script = 'openssl enc -aes-128-ctr -nosalt -K "$1" -iv "$1" -in /dev/zero 2>/dev/null | head -c "$2" > "$3"'
    await tool('sh', ['-c', script, '-', key, String(bytes), file])
    await tool('tar', ['-C', tree, '--owner=0', '--group=0', '--mtime=@1763683200', '-rf', tar, `./opt/noise-${n}`])
    await rm(file)
  }
  return tar
}
