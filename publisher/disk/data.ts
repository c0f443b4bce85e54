import { createHash } from 'node:crypto'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { KiB, MiB } from '../../base/bytes.ts'
import { publisherErrors } from '../errors.ts'
import { runTool } from '../tools.ts'

/**
 * The data partition: ext4 made inside the disk image, in place, as an ordinary user.
 *
 * Files go in with debugfs, because `mke2fs -d` would copy owner and change time of the host's files (e2fsprogs 1.47.0).
 */

export interface DataFile {
  /** "bistable/slots/a/release.json"; letters, digits, ".", "-", "_" and "/" only. */
  readonly path: string
  readonly bytes: Uint8Array
}

export interface DataOptions {
  /** Bytes from the start of the image file. */
  readonly offset: number
  readonly size: number
  readonly uuid: string
  /** Seconds since 1970, of everything. */
  readonly time: number
  readonly workDir: string
  readonly signal?: AbortSignal
}

// Named here and not taken from the host's mke2fs.conf: the same image on every machine. What Linux 4.9 and newer mount.
const FEATURES =
  'none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,' +
  'huge_file,dir_nlink,extra_isize,metadata_csum'

const BLOCK = 4096

/**
 * Blocks (of 4096 bytes) of one group, which is also where the first copy of the superblock stands. ext4 writes its
 * superblock in place, over two sectors: a cut between them leaves none, and the initramfs repairs it from this copy
 * (`repair_from_copy` in initramfs/init, which has the same rule). Groups of 16 MiB where the usual 128 MiB would give a
 * small partition one group, and so no copy. Pure.
 * @param size of the partition, bytes
 */
export function blocksPerGroup(size: number): number {
  return size < 1024 * MiB ? 4096 : 32_768
}

/** Makes the file system in `image` and puts `files` into it. @throws TOOL_MISSING, TOOL_FAILED */
export async function makeData(image: string, files: readonly DataFile[], options: DataOptions): Promise<void> {
  const work = join(options.workDir, 'data')
  await mkdir(work)
  const run = {
    cwd: work,
    env: { E2FSPROGS_FAKE_TIME: String(options.time), MKE2FS_CONFIG: '/dev/null', DEBUGFS_PAGER: '__none__' },
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  }
  const extended =
    `offset=${options.offset},nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,` +
    `hash_seed=${options.uuid}`
  await runTool(
    'mke2fs',
    // biome-ignore format: option and value stand together
    ['-q', '-F', '-O', FEATURES, '-I', '256', '-b', String(BLOCK), '-g', String(blocksPerGroup(options.size)), '-m', '1', '-L', 'data', '-U', options.uuid,
     '-E', extended, image, `${Math.floor(options.size / KiB)}k`],
    run,
  )
  const filesystem = `${image}?offset=${options.offset}`
  try {
    for (const [i, file] of files.entries()) await writeFile(join(work, `f${i}`), file.bytes)
    await writeFile(join(work, 'script'), debugfsScript(files.map((file) => file.path)))
    await runTool('debugfs', ['-w', '-f', 'script', filesystem], run)
    // debugfs ends with 0 whatever went wrong inside: believe what can be read back.
    await writeFile(join(work, 'script'), files.map((file, i) => `dump /${file.path} back${i}\n`).join(''))
    await runTool('debugfs', ['-f', 'script', filesystem], run)
    for (const [i, file] of files.entries())
      if (!(await sameFile(join(work, `back${i}`), file.bytes)))
        throw publisherErrors.TOOL_FAILED(`debugfs did not write /${file.path} into the data partition`)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Commands that make the folders and write f0, f1, … to `paths`, modes 0755 and 0644. Pure. */
export function debugfsScript(paths: readonly string[]): string {
  const folders = new Set<string>()
  for (const path of paths) {
    if (!/^[A-Za-z0-9._-]+(?:\/[A-Za-z0-9._-]+)*$/.test(path)) throw new RangeError(`not a plain path: ${path}`)
    const parts = path.split('/').slice(0, -1)
    for (let i = 1; i <= parts.length; i++) folders.add(parts.slice(0, i).join('/'))
  }
  const lines = [...folders].flatMap((folder) => [`mkdir /${folder}`, `set_inode_field /${folder} mode 040755`])
  for (const [i, path] of paths.entries()) lines.push(`write f${i} /${path}`, `set_inode_field /${path} mode 0100644`)
  return `${lines.join('\n')}\n`
}

async function sameFile(path: string, bytes: Uint8Array): Promise<boolean> {
  const sha = (content: Uint8Array) => createHash('sha256').update(content).digest('hex')
  const back = await readFile(path).catch(() => undefined)
  return back !== undefined && sha(back) === sha(bytes)
}
