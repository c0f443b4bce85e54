import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Header, pack } from 'tar-stream'
import { onTestFinished } from 'vitest'
import { openSquashfs, type SquashEntry, type Squashfs } from '../../bundle/squashfs/image.ts'
import { type OpenImage, openImageFile } from '../../bundle/squashfs/reader.ts'

/** Builds real images with squashfs-tools and opens them with our reader. */

export const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C' }

/** True when the tools are here. In CI a missing tool is an error, elsewhere a named skip. */
export function haveTools(...names: string[]): boolean {
  const missing = names.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`], { env }).status !== 0)
  if (missing.length > 0 && process.env['CI'] !== undefined) throw new Error(`missing: ${missing.join(', ')}`)
  return missing.length === 0
}

export function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'bistable-squashfs-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

export interface Item {
  readonly path: string
  readonly type: 'file' | 'dir' | 'symlink' | 'char' | 'block' | 'fifo' | 'link'
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly mtime?: number
  readonly content?: Uint8Array
  /** Of a symlink, or the path that a hard link shares its inode with. */
  readonly target?: string
  readonly rdev?: readonly [number, number]
  readonly xattrs?: Readonly<Record<string, Uint8Array>>
}

const TAR_TYPES = {
  file: 'file',
  dir: 'directory',
  symlink: 'symlink',
  char: 'character-device',
  block: 'block-device',
  fifo: 'fifo',
  link: 'link',
} as const

export async function makeTar(items: readonly Item[]): Promise<Buffer> {
  const tar = pack()
  const collected = (async () => {
    const pieces: Buffer[] = []
    for await (const piece of tar) pieces.push(piece as Buffer)
    return Buffer.concat(pieces)
  })()
  for (const item of items) {
    const pax: Record<string, string> = {}
    // tar-stream writes records as UTF-8 text: values of the test are kept to bytes below 128.
    for (const [name, value] of Object.entries(item.xattrs ?? {}))
      pax[`SCHILY.xattr.${name}`] = Buffer.from(value).toString('utf8')
    const header: Partial<Header> & Pick<Header, 'name'> = {
      name: item.path,
      type: TAR_TYPES[item.type],
      mode: item.mode ?? 0o644,
      uid: item.uid ?? 0,
      gid: item.gid ?? 0,
      mtime: new Date((item.mtime ?? 0) * 1000),
      ...(item.target !== undefined && { linkname: item.target }),
      ...(item.rdev !== undefined && { devmajor: item.rdev[0], devminor: item.rdev[1] }),
      ...(Object.keys(pax).length > 0 && { pax }),
    }
    if (item.type === 'file') tar.entry(header, Buffer.from(item.content ?? new Uint8Array(0)))
    else tar.entry(header)
  }
  tar.finalize()
  return collected
}

/** Builds an image from a tar with sqfstar; returns its path. */
export async function sqfstar(items: readonly Item[], ...options: string[]): Promise<string> {
  const image = join(scratch(), 'image.sqfs')
  // sqfstar 4.5.1 misreads -Xcompression-level; mksquashfs reads the same tar and takes it.
  const [command, ...source] = options.includes('-Xcompression-level')
    ? (['mksquashfs', '-', image, '-tar'] as const)
    : (['sqfstar'] as const)
  const target = command === 'sqfstar' ? [image] : []
  execFileSync(command, [...source, '-quiet', '-no-progress', '-processors', '1', ...options, ...target], {
    env,
    input: await makeTar(items),
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  return image
}

/** Builds an image from a folder with mksquashfs; returns its path. */
export function mksquashfs(folder: string, ...options: string[]): string {
  const image = join(scratch(), 'image.sqfs')
  execFileSync('mksquashfs', [folder, image, '-quiet', '-no-progress', '-processors', '1', ...options], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  return image
}

export function tool(command: string, ...args: string[]): string {
  return execFileSync(command, args, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 28 })
}

export async function openPath(path: string): Promise<{ image: Squashfs; file: OpenImage }> {
  const file = await openImageFile(path)
  onTestFinished(() => file.close())
  return { image: await openSquashfs(file, file.size), file }
}

/** An image held in memory; `bytes` may be changed before it is opened. */
export function openBytes(bytes: Uint8Array): Promise<Squashfs> {
  return openSquashfs(
    { read: async (offset, length) => Uint8Array.from(bytes.subarray(offset, offset + length)) },
    bytes.length,
  )
}

export async function entriesOf(image: Squashfs): Promise<SquashEntry[]> {
  const all: SquashEntry[] = []
  for await (const entry of image.walk()) all.push(entry)
  return all
}

export async function contentOf(image: Squashfs, entry: SquashEntry): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of image.read(entry)) pieces.push(piece)
  return Buffer.concat(pieces)
}

export function writeScratch(name: string, bytes: Uint8Array): string {
  const path = join(scratch(), name)
  writeFileSync(path, bytes)
  return path
}
