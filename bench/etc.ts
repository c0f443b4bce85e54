import { execFileSync } from 'node:child_process'
import { mkdir, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { MiB } from '../base/bytes.ts'
import { tool } from './measure.ts'
import { goal, type Report, rowOf } from './report.ts'
import type { Workshop } from './workshop.ts'

/** The merge of /etc as an install does it, in a process of its own each time: nothing is warm but the page cache. */

const FILES = 2000
const FOLDERS = 50
const LINES = 60
const root = resolve(import.meta.dirname, '..')

export interface EtcOnce {
  readonly seconds: number
  readonly cpuSeconds: number
  readonly peakMiB: number
  readonly conflicts: number
  readonly notes: number
}

export async function benchEtc(workshop: Workshop, runs: number): Promise<Report> {
  const folder = join(workshop.folder, 'etc')
  // Every 20th file is changed here, every 3rd in the new image; every 60th in both, in different lines.
  await makeTree(join(folder, 'old/etc'), () => [])
  await makeTree(join(folder, 'running'), (n) => (n % 20 === 0 ? [0] : []))
  await makeTree(join(folder, 'image/etc'), (n) => (n % 3 === 0 ? [LINES - 1] : []))
  for (const name of ['old', 'image'])
    await tool('mksquashfs', [
      join(folder, name),
      join(folder, `${name}.squashfs`),
      '-comp',
      'zstd',
      '-quiet',
      '-no-progress',
    ])
  // Bundled, as the agent is: what is measured is no compiler.
  const program = join(workshop.folder, 'program', 'etc-once.mjs')
  await build({
    ...{ absWorkingDir: root, entryPoints: ['bench/etc-once.ts'], outfile: program, bundle: true, logLevel: 'error' },
    ...{ platform: 'node', format: 'esm', target: 'node20.19', external: ['zstd-napi'] },
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  })
  await symlink(join(root, 'node_modules'), join(workshop.folder, 'node_modules'))
  const measured: EtcOnce[] = []
  await mkdir(join(folder, 'data'))
  const own = await mountOwn(join(folder, 'data'))
  try {
    for (let run = 0; run < runs; run++) {
      workshop.say(`etc: run ${run + 1} of ${runs}`)
      for (const name of ['etc', 'report.json']) await rm(join(folder, 'data', name), { recursive: true, force: true })
      measured.push(JSON.parse(execFileSync(process.execPath, [program, folder], { encoding: 'utf8' })) as EtcOnce)
    }
  } finally {
    await own?.()
  }
  const row = rowOf(`merge of ${FILES} files`, measured)
  const { conflicts = 0, notes = 0 } = measured[0] ?? {}
  return {
    name: 'etc',
    runs,
    rows: [row],
    goals: [goal('merge, median', row.seconds?.median ?? 0, 's', 1)],
    notes: [
      own === undefined
        ? 'written to the file system of this folder, with whatever else is written there: an ext4 of its own needs root'
        : 'written to an ext4 of its own, in memory: the time that a medium takes comes on top',
      `${FILES} files of ${LINES} lines in ${FOLDERS} folders; ${conflicts} conflicts, ${notes} notes`,
      'both images read from SquashFS, extended attributes compared, the new folder written, flushed and read back',
    ],
  }
}

/** A device's data partition is a file system of its own: here the journal would carry what others write. @returns how it ends */
async function mountOwn(place: string): Promise<(() => Promise<void>) | undefined> {
  const image = `/dev/shm/bistable-etc-${process.pid}.img`
  const end = () => rm(image, { force: true })
  try {
    await writeFile(image, '')
    await truncate(image, 512 * MiB)
    await tool('mke2fs', ['-q', '-t', 'ext4', '-F', image])
    await tool('mount', ['-o', 'loop,noatime', image, place])
  } catch {
    await end()
    return undefined
  }
  return async () => {
    await tool('umount', [place])
    await end()
  }
}

async function makeTree(top: string, changedLines: (n: number) => readonly number[]): Promise<void> {
  for (let n = 0; n < FILES; n++) {
    const folder = join(top, `part${n % FOLDERS}`)
    await mkdir(folder, { recursive: true })
    const changed = changedLines(n)
    const lines = Array.from({ length: LINES }, (_, i) => `option${i} = ${changed.includes(i) ? top.length : n}`)
    await writeFile(join(folder, `file${n}.conf`), `${lines.join('\n')}\n`)
  }
}
