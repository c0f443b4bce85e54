import { createHash } from 'node:crypto'
import { chmod, copyFile, mkdir, open, rm, stat, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { roundUp } from '../base/bytes.ts'
import { publisherErrors } from './errors.ts'
import { runTool } from './tools.ts'

/** FAT file systems made as an ordinary user, equal bytes for equal input: mkfs.fat and mtools with everything fixed. */

export interface FatFile {
  /** "vmlinuz" or "EFI/BOOT/BOOTX64.EFI": every part in 8.3 form, of one case per half. */
  readonly name: string
  /** A file on the host. */
  readonly source: string
}

export interface FatLayout {
  /** Bytes of the whole file system; a multiple of 4096. */
  readonly size: number
  readonly sectorsPerCluster: number
}

const SECTOR = 512
// FAT16 has 4085 .. 65524 clusters; drivers disagree at the very edges, so keep off them.
const MIN_CLUSTERS = 4200
const MAX_CLUSTERS = 65_000

/**
 * Chooses the smallest FAT16 that holds files of these sizes (bytes) and `directories` folders.
 * Pure. FAT16 because GRUB, U-Boot and UEFI all read it and its size follows from its content alone.
 */
export function planFat(sizes: readonly number[], directories: number, atLeast = 0): FatLayout {
  for (let sectorsPerCluster = 4; sectorsPerCluster <= 64; sectorsPerCluster *= 2) {
    const cluster = sectorsPerCluster * SECTOR
    const content = sizes.reduce((sum, size) => sum + Math.max(1, Math.ceil(size / cluster)), directories)
    const clusters = Math.max(content, MIN_CLUSTERS, Math.ceil(atLeast / cluster))
    if (clusters > MAX_CLUSTERS) continue
    // Reserved sector(s), two FATs of 2 bytes per cluster, 512 root entries of 32 bytes; 64 KiB cover mkfs's alignment.
    const overhead = 2 * roundUp((clusters + 2) * 2, SECTOR) + 512 * 32 + 64 * 1024
    return { size: roundUp(clusters * cluster + overhead, 4096), sectorsPerCluster }
  }
  throw publisherErrors.IMAGE_TOO_LARGE('the files of a FAT file system are larger than the 2 GB that FAT16 holds')
}

export interface FatOptions {
  /** Seconds since 1970 of every file; at least 1980-01-01, where FAT's calendar begins. */
  readonly time: number
  /** At most 11 upper-case letters and digits. */
  readonly label: string
  /** Makes the file system at least this large (bytes). */
  readonly atLeast?: number
  /** An empty folder for scratch files, removed afterwards. */
  readonly workDir: string
  readonly signal?: AbortSignal
}

/** FAT's first moment, in seconds since 1970. */
export const FAT_EPOCH = 315_532_800

/**
 * Writes a FAT file system with `files`, in this order, to the new file `output`.
 * @returns its size in bytes
 * @throws TOOL_MISSING, TOOL_FAILED, FAT_NAME_INVALID, IMAGE_TOO_LARGE
 */
export async function makeFat(files: readonly FatFile[], output: string, options: FatOptions): Promise<number> {
  for (const file of files)
    for (const part of file.name.split('/'))
      if (!/^(?:[a-z0-9_-]{1,8}|[A-Z0-9_-]{1,8})(?:\.(?:[a-z0-9]{1,3}|[A-Z0-9]{1,3}))?$/.test(part))
        throw publisherErrors.FAT_NAME_INVALID(`'${file.name}' is not of 8.3 form`)
  const folders = foldersOf(files.map((file) => file.name))
  const layout = await layoutOf(files, options.atLeast)
  const time = Math.max(options.time, FAT_EPOCH)

  const handle = await open(output, 'wx')
  await handle.truncate(layout.size)
  await handle.close()
  // mtools stamps "now" on what it makes; it takes now from SOURCE_DATE_EPOCH, and the zone from TZ (fixed by runTool).
  const env = { SOURCE_DATE_EPOCH: String(time), MTOOLSRC: '/dev/null', HOME: options.workDir }
  const run = { env, ...(options.signal === undefined ? {} : { signal: options.signal }) }
  const serial = createHash('sha256').update(`${options.label}\n${layout.size}`).digest('hex').slice(0, 8)
  await runTool(
    'mkfs.fat',
    // biome-ignore format: option and value stand together
    ['--invariant', '-i', serial, '-F', '16', '-S', String(SECTOR), '-s', String(layout.sectorsPerCluster),
     '-r', '512', '-R', '8', '-n', options.label, output],
    run,
  )
  for (const folder of folders) await runTool('mmd', ['-i', output, `::/${folder}`], run)
  for (const file of files) await copyIn(file, output, time, options.workDir, run)
  return layout.size
}

async function layoutOf(files: readonly FatFile[], atLeast?: number): Promise<FatLayout> {
  const sizes = await Promise.all(files.map(async (file) => (await stat(file.source)).size))
  return planFat(sizes, foldersOf(files.map((file) => file.name)).length, atLeast)
}

/** Bytes of the file system that `makeFat` would make of these files. */
export async function fatSize(files: readonly FatFile[], atLeast?: number): Promise<number> {
  return (await layoutOf(files, atLeast)).size
}

async function copyIn(
  file: FatFile,
  output: string,
  time: number,
  workDir: string,
  run: Parameters<typeof runTool>[2],
): Promise<void> {
  // mcopy takes time and attributes from the source: a copy with fixed ones keeps the user's umask and clock out.
  const scratch = join(workDir, 'fat', file.name)
  await mkdir(dirname(scratch), { recursive: true })
  await copyFile(file.source, scratch)
  await chmod(scratch, 0o644)
  await utimes(scratch, time, time)
  try {
    await runTool('mcopy', ['-m', '-i', output, scratch, `::/${file.name}`], run)
  } finally {
    await rm(join(workDir, 'fat'), { recursive: true, force: true })
  }
}

/** All folders that the names need, parents first, in order of appearance. Pure. */
function foldersOf(names: readonly string[]): string[] {
  const folders = new Set<string>()
  for (const name of names) {
    const parts = name.split('/').slice(0, -1)
    for (let i = 1; i <= parts.length; i++) folders.add(parts.slice(0, i).join('/'))
  }
  return [...folders]
}
