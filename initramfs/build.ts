import { readFile } from 'node:fs/promises'
import { compressArchive } from './compress.ts'
import { type CpioEntry, packCpio } from './cpio.ts'
import { readElf } from './elf.ts'
import { initramfsErrors } from './errors.ts'
import {
  DISK_MODULES,
  loadOrder,
  MAX_MODULE,
  moduleName,
  REQUIRED_MODULES,
  USUAL_MODULES,
  unpackModule,
} from './modules.ts'
import { APPLETS, BTRFS_TOOL, TOOLS } from './tools.ts'

/** Packs the initramfs of a release from the programs, libraries and kernel modules of its image. */

/** The tree that the initramfs is made from, as paths without a leading slash ("usr/bin/busybox"). */
export interface InitramfsSource {
  /** Follows symlinks as a chroot would: the canonical path of an existing file or directory, or undefined. */
  resolve(path: string): string | undefined
  /** The content of a regular file, by canonical path. The source bounds it. */
  read(path: string): Promise<Uint8Array>
  /** Names in a directory, by canonical path; empty when it is none. */
  list(path: string): readonly string[]
}

export interface InitramfsOptions {
  /** The kernel whose modules go in, as under /lib/modules. Undefined: the only one there is. */
  readonly kernel?: string
  /** Kernel modules beyond the usual ones ("virtio_blk"); one that does not exist is an error. */
  readonly modules?: readonly string[]
  /** Device-owned paths under /etc, with shell wildcards, carried over when a slot's /etc is made. Others are left out. */
  readonly owned?: readonly string[]
  /** /etc is made anew at every boot; only owned paths stay. */
  readonly transientEtc?: boolean
  /** What stands at declared places, each after those it lies in. */
  readonly mounts?: readonly InitramfsMount[]
  /** Which schema the release's data have, and what brings older data there; the defaults take no part. */
  readonly state?: InitramfsState
  /** The data partition may be btrfs: its driver and program go in. */
  readonly btrfs?: boolean
  /** A watchdog device that starts as soon as its driver is there; the system must then feed it. */
  readonly watchdog?: string
  /** Seconds without feeding after which it resets, 5 .. 3600; 60 without it. */
  readonly watchdogSeconds?: number
}

/** One line of `etc/bistable-mounts`. */
export type InitramfsMount =
  | { readonly path: string; readonly policy: 'image' | 'data' }
  | { readonly path: string; readonly policy: 'tmpfs'; readonly sizeMiB?: number }
  /** `reset`: what was written is each release's own. */
  | { readonly path: string; readonly policy: 'overlay'; readonly release?: 'keep' | 'reset' }

export interface InitramfsState {
  readonly schema: number
  readonly readableBy: number
  /** Time limit of one migration. */
  readonly seconds: number
  readonly migrations: readonly { readonly to: number; readonly run: string }[]
  /** What migrations change, relative to the state ("var/lib/app"). */
  readonly kept: readonly string[]
}

/** Kernel modules that the options ask for without naming them. */
export function extraModules({ mounts = [], btrfs = false }: InitramfsOptions): readonly string[] {
  return [...(mounts.some(({ policy }) => policy === 'overlay') ? ['overlay'] : []), ...(btrfs ? ['btrfs'] : [])]
}

/** What `lint` asks of an image on behalf of the initramfs. */
export const INITRAMFS_NEEDS = {
  modules: REQUIRED_MODULES,
  programs: TOOLS.filter((tool) => tool.optional !== true).map((tool) => tool.paths),
} as const

export interface InitramfsPlan {
  readonly kernel: string
  readonly entries: readonly CpioEntry[]
  /** Module files in load order, as in modules.dep; the drivers of disks last. */
  readonly modules: readonly string[]
  readonly compression: 'zstd' | 'gzip'
}

const SCRIPTS = ['./init', './state.sh']
/** What our releases and a system's settings change, a hundredth of all: in front of the rest it would change every compressed byte behind it. */
const LAST = ['etc', 'init', 'state.sh']

/** One file at most; the whole archive stays below 256 MiB before compression. */
const MAX_FILE = MAX_MODULE
const MAX_TOTAL = 256 * 1024 * 1024

/** The bytes of `initrd.img`. Same source and options: same bytes. */
export async function buildInitramfs(source: InitramfsSource, options: InitramfsOptions = {}): Promise<Uint8Array> {
  const plan = await planInitramfs(source, options)
  return compressArchive(packCpio(plan.entries, LAST), plan.compression)
}

/** Everything that goes in, before it is packed: for reports and tests. */
export async function planInitramfs(source: InitramfsSource, options: InitramfsOptions = {}): Promise<InitramfsPlan> {
  const [init, state] = await Promise.all(SCRIPTS.map((name) => readFile(new URL(name, import.meta.url))))
  if (init === undefined || state === undefined) throw new RangeError('two scripts')
  const entries = new Map<string, CpioEntry>()
  const put = (entry: CpioEntry): void => {
    entries.set(entry.path, entry)
  }
  put({ path: 'init', type: 'file', mode: 0o755, bytes: init })
  put({ path: 'state.sh', type: 'file', mode: 0o644, bytes: state })
  for (const path of ['proc', 'sys', 'dev', 'run', 'root', 'image', 'tmp']) put({ path, type: 'dir', mode: 0o755 })
  // What the kernel gives the first program as its standard streams, before /dev is mounted.
  put({ path: 'dev/console', type: 'char', mode: 0o600, device: [5, 1] })
  for (const applet of APPLETS) put({ path: `bin/${applet}`, type: 'symlink', target: 'busybox' })
  await putPrograms(source, put, options.btrfs === true)

  const kernel = kernelOf(source, options.kernel)
  const modules = await putModules(source, kernel, [...(options.modules ?? []), ...extraModules(options)], put)
  putText(put, 'etc/fstab', KERNEL_FOLDERS)
  putText(put, 'etc/modules', modules.always.map(baseName))
  putText(put, 'etc/disk-modules', modules.disks.map(baseName))
  putText(put, 'etc/bistable-owned', (options.owned ?? []).filter((path) => path.startsWith('/etc/')).map(checkPath))
  if (options.transientEtc === true) putText(put, 'etc/bistable-etc-transient', ['1'])
  putText(put, 'etc/bistable-mounts', (options.mounts ?? []).map(mountLine))
  putState(put, options.state)
  putText(put, 'etc/bistable-watchdog', watchdogLine(options))

  const total = [...entries.values()].reduce((sum, entry) => sum + (entry.type === 'file' ? entry.bytes.length : 0), 0)
  if (total > MAX_TOTAL)
    throw initramfsErrors.INITRAMFS_TOO_LARGE(`its files take ${total} bytes, at most ${MAX_TOTAL}`)
  return {
    kernel: kernel.release,
    entries: [...entries.values()],
    modules: [...modules.always, ...modules.disks],
    compression: await compressionOf(source, kernel),
  }
}

function watchdogLine({ watchdog, watchdogSeconds = 60 }: InitramfsOptions): readonly string[] {
  return watchdog === undefined ? [] : [`${checkPath(watchdog)} ${watchdogSeconds}`]
}

/** "POLICY PATH OPTION" */
function mountLine(mount: InitramfsMount): string {
  const line = `${mount.policy} ${checkPath(mount.path)}`
  if (mount.policy === 'overlay') return `${line} ${mount.release ?? 'keep'}`
  return mount.policy === 'tmpfs' && mount.sizeMiB !== undefined ? `${line} ${mount.sizeMiB}` : line
}

function putState(put: Put, state: InitramfsState | undefined): void {
  const { schema, readableBy, seconds, migrations, kept } = state ?? NO_STATE
  putText(put, 'etc/bistable-state', [`${schema} ${readableBy} ${seconds}`])
  putText(
    put,
    'etc/bistable-migrations',
    migrations.map(({ to, run }) => `${to} ${checkPath(run)}`),
  )
  putText(
    put,
    'etc/bistable-state-paths',
    kept.map((path) => checkPath(`/${path.replaceAll('=', '+')}`) && path),
  )
}

const NO_STATE: InitramfsState = { schema: 0, readableBy: 0, seconds: 300, migrations: [], kept: [] }

type Put = (entry: CpioEntry) => void

/** The first that `init` mounts, all in one process. */
const KERNEL_FOLDERS = [
  'proc /proc proc nosuid,nodev,noexec 0 0',
  'sysfs /sys sysfs nosuid,nodev,noexec 0 0',
  'devtmpfs /dev devtmpfs nosuid,mode=0755 0 0',
  'tmpfs /run tmpfs nosuid,nodev,mode=0755 0 0',
]

function putText(put: Put, path: string, lines: readonly string[]): void {
  put({ path, type: 'file', mode: 0o644, bytes: Buffer.from(lines.map((line) => `${line}\n`).join('')) })
}

function baseName(path: string): string {
  return `${moduleName(path)}.ko`
}

/** The script reads these line by line and expands wildcards in them: nothing else may be special. */
function checkPath(path: string): string {
  if (!/^(?:\/[A-Za-z0-9._+*?@%:,~-]+)+$/.test(path) || /\/\.\.?(?:\/|$)/.test(path))
    throw initramfsErrors.INITRAMFS_PATH(`${JSON.stringify(path)} is not a plain absolute path`)
  return path
}

async function load(source: InitramfsSource, path: string): Promise<Uint8Array> {
  const bytes = await source.read(path)
  if (bytes.length > MAX_FILE) throw initramfsErrors.INITRAMFS_TOO_LARGE(`/${path} has ${bytes.length} bytes`)
  return bytes
}

async function putPrograms(source: InitramfsSource, put: Put, btrfs: boolean): Promise<void> {
  const done = new Set<string>()
  const wanted: { name: string; place: string; path: string }[] = []
  for (const tool of btrfs ? [...TOOLS, BTRFS_TOOL] : TOOLS) {
    const path = firstOf(source, tool.paths)
    if (path !== undefined)
      wanted.push({ name: tool.name, place: `${tool.name === 'busybox' ? 'bin' : 'sbin'}/${tool.name}`, path })
    else if (tool.optional !== true)
      throw initramfsErrors.INITRAMFS_TOOL_MISSING(`the image has no /${tool.paths.join(', no /')}`)
  }
  const folders = libraryFolders(source)
  for (let next = wanted.shift(); next !== undefined; next = wanted.shift()) {
    if (done.has(next.place)) continue
    done.add(next.place)
    const { path, place, name } = next
    const bytes = await load(source, path)
    put({ path: place, type: 'file', mode: 0o755, bytes })
    const needs = readElf(bytes, path)
    if (needs.interpreter !== undefined) {
      const interpreter = needs.interpreter.replace(/^\/+/, '')
      done.add(interpreter.slice(interpreter.lastIndexOf('/') + 1))
      wanted.push({
        name: interpreter,
        place: interpreter,
        path: found(source, [interpreter], needs.interpreter, name),
      })
    }
    for (const library of needs.libraries) {
      // glibc's libc names its loader, which stands at its own place already.
      if (done.has(library)) continue
      const paths = folders.map((folder) => `${folder}/${library}`)
      wanted.push({ name: library, place: `lib/${library}`, path: found(source, paths, library, name) })
    }
  }
}

function firstOf(source: InitramfsSource, paths: readonly string[]): string | undefined {
  for (const path of paths) {
    const real = source.resolve(path)
    if (real !== undefined) return real
  }
  return undefined
}

function found(source: InitramfsSource, paths: readonly string[], library: string, user: string): string {
  const real = firstOf(source, paths)
  if (real === undefined) throw initramfsErrors.INITRAMFS_LIBRARY_MISSING(`${user} needs ${library}`)
  return real
}

/** Where the dynamic loaders of Debian, Fedora, Alpine and their like look; multiarch folders included. */
function libraryFolders(source: InitramfsSource): string[] {
  const folders: string[] = []
  for (const base of ['lib', 'usr/lib', 'lib64', 'usr/lib64']) {
    folders.push(base)
    const real = source.resolve(base)
    if (real === undefined) continue
    for (const name of source.list(real))
      if (/^[a-z0-9_]+-linux-[a-z0-9_]+$/.test(name)) folders.push(`${base}/${name}`)
  }
  return folders
}

interface Kernel {
  readonly release: string
  /** Canonical path of its folder of modules. */
  readonly folder: string
}

function kernelOf(source: InitramfsSource, wanted: string | undefined): Kernel {
  const base = firstOf(source, ['usr/lib/modules', 'lib/modules'])
  const names = base === undefined ? [] : source.list(base).filter((name) => wanted === undefined || name === wanted)
  const withModules = names.filter((name) => source.resolve(`${base}/${name}/modules.dep`) !== undefined)
  const [release] = withModules
  if (release === undefined || withModules.length > 1)
    throw initramfsErrors.INITRAMFS_KERNEL(
      `${wanted === undefined ? 'one kernel' : `kernel ${wanted}`} with a modules.dep was wanted under /lib/modules, found: ${withModules.join(', ') || 'none'}`,
    )
  return { release, folder: source.resolve(`${base}/${release}`) ?? `${base}/${release}` }
}

async function putModules(
  source: InitramfsSource,
  kernel: Kernel,
  extra: readonly string[],
  put: Put,
): Promise<{ readonly always: readonly string[]; readonly disks: readonly string[] }> {
  const table = async (name: string): Promise<string> => {
    const path = source.resolve(`${kernel.folder}/${name}`)
    return path === undefined ? '' : Buffer.from(await load(source, path)).toString('utf8')
  }
  const tables = {
    dep: await table('modules.dep'),
    builtin: await table('modules.builtin'),
    softdep: await table('modules.softdep'),
  }
  // Those that the image asks for come first: a watchdog's driver, whose cover begins when it is loaded.
  const always = loadOrder(tables, [...extra, ...REQUIRED_MODULES], USUAL_MODULES)
  const disks = loadOrder(tables, [], DISK_MODULES).filter((path) => !always.includes(path))
  for (const path of [...always, ...disks]) {
    const real = source.resolve(`${kernel.folder}/${path}`)
    if (real === undefined)
      throw initramfsErrors.INITRAMFS_MODULE_MISSING(`modules.dep names ${path}, which is not there`)
    const bytes = unpackModule(real, await load(source, real))
    put({ path: `lib/modules/${baseName(path)}`, type: 'file', mode: 0o644, bytes })
  }
  return { always, disks }
}

/** zstd where the kernel says that it can unpack it; every kernel with an initramfs can unpack gzip. */
async function compressionOf(source: InitramfsSource, kernel: Kernel): Promise<'zstd' | 'gzip'> {
  const path = firstOf(source, [`boot/config-${kernel.release}`, `${kernel.folder}/config`])
  if (path === undefined) return 'gzip'
  return /^CONFIG_RD_ZSTD=y$/m.test(Buffer.from(await load(source, path)).toString('latin1')) ? 'zstd' : 'gzip'
}
