import { compareUtf8 } from '../base/bytes.ts'
import { contentsErrors } from './contents-errors.ts'
import { parseRpmHeader } from './rpm/header.ts'
import { sqliteRows } from './rpm/sqlite.ts'
import type { SquashEntry, Squashfs } from './squashfs/image.ts'

/** Which distribution packages a root file system holds, as its own package databases say. */

export interface Package {
  readonly manager: 'dpkg' | 'apk' | 'rpm'
  readonly name: string
  readonly version: string
  readonly arch: string
  /** The source package that it was built from, where the database says so: "openssl 3.0.11-1". */
  readonly source?: string
  /** As the database says it; dpkg's says nothing. */
  readonly license?: string
}

/** Debian's whole archive has some 60 MB of such text; an image has a small part of it. */
const MAX_DATABASE = 64 * 1024 * 1024
/** An rpm database keeps every file name, changelog and signature: a desktop's has some 100 MB. */
const MAX_RPM_DATABASE = 128 * 1024 * 1024
const MAX_PACKAGES = 100_000
/** One status.d file describes one package. */
const MAX_STATUS_D_FILE = 1024 * 1024
/** Longest name, version or architecture, in characters. */
const MAX_FIELD = 256
/** A write-ahead log of this length or less holds no change. */
const EMPTY_WAL = 32

const DPKG_STATUS = ['var/lib/dpkg/status', 'usr/lib/dpkg/status', 'usr/lib/sysimage/dpkg/status']
/** One file per package: distroless images have this instead of `status`. */
const DPKG_STATUS_D = ['var/lib/dpkg/status.d', 'usr/lib/dpkg/status.d']
/** The second since /lib is a symlink to usr/lib. */
const APK_INSTALLED = ['lib/apk/db/installed', 'usr/lib/apk/db/installed']
const RPM_FOLDERS = ['var/lib/rpm', 'usr/lib/sysimage/rpm', 'usr/share/rpm']
const RPM_SQLITE = 'rpmdb.sqlite'
/** Berkeley DB (before rpm 4.16) and ndb (SUSE): recognised, not read. */
const RPM_UNREAD = ['Packages', 'Packages.db']

/** Paths of databases that may be there and are not read, without a leading slash. A non-empty log counts as one. */
export const UNREAD_DATABASES: readonly string[] = RPM_FOLDERS.flatMap((folder) =>
  [...RPM_UNREAD, `${RPM_SQLITE}-wal`].map((name) => `${folder}/${name}`),
)

/** Whether a file at one of `UNREAD_DATABASES` holds packages that nobody reads. */
export function isUnread(path: string, size: number): boolean {
  return size > (path.endsWith('-wal') ? EMPTY_WAL : 0)
}

export interface PackageList {
  /** Sorted by name, architecture and version. */
  readonly packages: readonly Package[]
  /** Databases that were found and cannot be read: the list is not whole. */
  readonly unread: readonly string[]
}

/** The installed packages; none when the image has no database. @throws as `listPackages` */
export async function readPackages(image: Squashfs): Promise<readonly Package[]> {
  return (await listPackages(image)).packages
}

/**
 * The installed packages, and what could not be read.
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE, SQUASHFS_*
 */
export async function listPackages(image: Squashfs): Promise<PackageList> {
  const found: Package[] = []
  for (const path of DPKG_STATUS) found.push(...parseDpkg(await readText(image, path, MAX_DATABASE), path))
  for (const folder of DPKG_STATUS_D) {
    const entry = await image.lookup(folder)
    if (entry?.type !== 'dir') continue
    const names = await image.names(entry)
    if (names.length > 2 * MAX_PACKAGES) throw contentsErrors.PACKAGES_TOO_LARGE(`/${folder} has ${names.length} files`)
    // The .md5sums files beside them list contents, not packages.
    for (const name of names.filter((other) => !other.endsWith('.md5sums'))) {
      const path = `${folder}/${name}`
      found.push(...parseDpkg(await readText(image, path, MAX_STATUS_D_FILE), path))
    }
  }
  for (const path of APK_INSTALLED) found.push(...parseApk(await readText(image, path, MAX_DATABASE), path))
  for (const folder of RPM_FOLDERS) {
    const path = `${folder}/${RPM_SQLITE}`
    const bytes = await readFile(image, path, MAX_RPM_DATABASE)
    if (bytes !== undefined) found.push(...parseRpm(bytes, path))
  }
  checkCount(found.length, 'the image')
  const unread: string[] = []
  for (const path of UNREAD_DATABASES) {
    const entry = await image.lookup(path)
    if (entry?.type === 'file' && isUnread(path, entry.size)) unread.push(path)
  }
  found.sort((a, b) => compareUtf8(a.name, b.name) || compareUtf8(a.arch, b.arch) || compareUtf8(a.version, b.version))
  return { packages: found, unread }
}

async function readText(image: Squashfs, path: string, atMost: number): Promise<string> {
  return (await readFile(image, path, atMost))?.toString('utf8') ?? ''
}

async function readFile(image: Squashfs, path: string, atMost: number): Promise<Buffer | undefined> {
  const entry = await image.lookup(path)
  if (entry?.type !== 'file') return undefined
  if (entry.size > atMost)
    throw contentsErrors.PACKAGES_TOO_LARGE(`/${path} has ${entry.size} bytes, at most ${atMost} are read`)
  return Buffer.concat(await pieces(image, entry))
}

async function pieces(image: Squashfs, entry: SquashEntry): Promise<Uint8Array[]> {
  const all: Uint8Array[] = []
  for await (const piece of image.read(entry)) all.push(piece)
  return all
}

/** States in which nothing of a package but its settings is there (dpkg(1)); in all others its files are, set up or not. */
const DPKG_GONE = ['not-installed', 'config-files']

/**
 * The packages in dpkg's status text: stanzas of `Field: value`, parted by empty lines. Those are there whose files are,
 * also where a build left them half set up, or that have no Status (status.d).
 * @param path of the file, for messages
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE
 */
export function parseDpkg(text: string, path: string): Package[] {
  return stanzas(text, /^(Package|Version|Architecture|Status|Source):(.*)$/, path).flatMap((fields) => {
    const status = fields.get('Status')
    if (status !== undefined && DPKG_GONE.includes(status.split(' ').at(-1) ?? '')) return []
    if (!fields.has('Package')) return []
    const version = wanted(fields, 'Version', path)
    // "NAME (VERSION)"; the version only where it is another than the binary package's.
    const [, source, sourceVersion] = /^([^ ]{1,256})(?: \(([^ ]{1,256})\))?$/.exec(fields.get('Source') ?? '') ?? []
    return [
      {
        manager: 'dpkg',
        name: wanted(fields, 'Package', path),
        version,
        arch: wanted(fields, 'Architecture', path),
        ...(source === undefined ? {} : { source: `${source} ${sourceVersion ?? version}` }),
      },
    ]
  })
}

/**
 * The packages in apk's installed text: stanzas of one-letter fields, parted by empty lines.
 * @param path of the file, for messages
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE
 */
export function parseApk(text: string, path: string): Package[] {
  return stanzas(text, /^([PVAoL]):(.*)$/, path).map((fields) => {
    const version = wanted(fields, 'V', path)
    const origin = fields.get('o')
    const license = fields.get('L')
    return {
      manager: 'apk',
      name: wanted(fields, 'P', path),
      version,
      arch: wanted(fields, 'A', path),
      ...(origin === undefined || origin === '' ? {} : { source: `${origin.slice(0, MAX_FIELD)} ${version}` }),
      ...(license === undefined || license === '' ? {} : { license: license.slice(0, MAX_FIELD) }),
    }
  })
}

/**
 * The packages in rpm's SQLite database (rpm 4.16 and later). Imported keys, which it lists too, are left out.
 * @param path of the file, for messages
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE
 */
export function parseRpm(database: Uint8Array, path: string): Package[] {
  const found: Package[] = []
  for (const [, blob] of sqliteRows(database, 'Packages', path)) {
    if (!(blob instanceof Uint8Array)) throw contentsErrors.PACKAGES_INVALID(`/${path} has a row that is no header`)
    const { name, version, arch, license, source } = parseRpmHeader(blob, path)
    if (arch === undefined) continue
    const fields = new Map([
      ['Package', name],
      ['Version', version],
      ['Architecture', arch],
    ])
    found.push({
      manager: 'rpm',
      name: wanted(fields, 'Package', path),
      version: wanted(fields, 'Version', path),
      arch: wanted(fields, 'Architecture', path),
      ...(source === undefined ? {} : { source: source.slice(0, MAX_FIELD) }),
      ...(license === undefined ? {} : { license: license.slice(0, MAX_FIELD) }),
    })
    checkCount(found.length, `/${path}`)
  }
  return found
}

/** The fields of each stanza that `line` recognises; a field that stands twice in a stanza is refused. */
function stanzas(text: string, line: RegExp, path: string): Map<string, string>[] {
  const all: Map<string, string>[] = []
  let fields = new Map<string, string>()
  for (const row of linesOf(text)) {
    if (row === '') {
      if (fields.size > 0) all.push(fields)
      checkCount(all.length, `/${path}`)
      fields = new Map()
      continue
    }
    const [, key, value] = line.exec(row) ?? []
    if (key === undefined || value === undefined) continue
    if (fields.has(key)) throw contentsErrors.PACKAGES_INVALID(`/${path} has ${key} twice in one stanza`)
    fields.set(key, value.trim())
  }
  if (fields.size > 0) all.push(fields)
  return all
}

/** Without building an array of all lines. */
function* linesOf(text: string): Generator<string> {
  let at = 0
  for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', at)) {
    yield text.slice(at, end)
    at = end + 1
  }
  yield text.slice(at)
}

/** A field that must be there, short, and of printable characters without space. */
function wanted(fields: ReadonlyMap<string, string>, key: string, path: string): string {
  const value = fields.get(key) ?? ''
  if (value.length > MAX_FIELD || !/^[!-~]+$/.test(value))
    throw contentsErrors.PACKAGES_INVALID(
      `/${path} has ${key} ${JSON.stringify(value.slice(0, 40))} for package ${JSON.stringify((fields.get('Package') ?? fields.get('P') ?? '').slice(0, 40))}`,
    )
  return value
}

function checkCount(count: number, where: string): void {
  if (count > MAX_PACKAGES) throw contentsErrors.PACKAGES_TOO_LARGE(`${where} lists more than ${MAX_PACKAGES} packages`)
}
