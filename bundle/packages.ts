import { compareUtf8 } from '../base/bytes.ts'
import { contentsErrors } from './contents-errors.ts'
import type { SquashEntry, Squashfs } from './squashfs/image.ts'

/** Which distribution packages a root file system holds, as its own package databases say. */

export interface Package {
  readonly manager: 'dpkg' | 'apk'
  readonly name: string
  readonly version: string
  readonly arch: string
}

/** Debian's whole archive has some 60 MB of such text; an image has a small part of it. */
const MAX_DATABASE = 64 * 1024 * 1024
const MAX_PACKAGES = 100_000
/** One status.d file describes one package. */
const MAX_STATUS_D_FILE = 1024 * 1024
/** Longest name, version or architecture, in characters. */
const MAX_FIELD = 256

const DPKG_STATUS = ['var/lib/dpkg/status', 'usr/lib/dpkg/status', 'usr/lib/sysimage/dpkg/status']
/** One file per package: distroless images have this instead of `status`. */
const DPKG_STATUS_D = ['var/lib/dpkg/status.d', 'usr/lib/dpkg/status.d']
/** The second since /lib is a symlink to usr/lib. */
const APK_INSTALLED = ['lib/apk/db/installed', 'usr/lib/apk/db/installed']

/**
 * The installed packages, sorted by name, architecture and version; none when the image has no database.
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE, SQUASHFS_*
 */
export async function readPackages(image: Squashfs): Promise<Package[]> {
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
  checkCount(found.length, 'the image')
  return found.sort(
    (a, b) => compareUtf8(a.name, b.name) || compareUtf8(a.arch, b.arch) || compareUtf8(a.version, b.version),
  )
}

async function readText(image: Squashfs, path: string, atMost: number): Promise<string> {
  const entry = await image.lookup(path)
  if (entry?.type !== 'file') return ''
  if (entry.size > atMost)
    throw contentsErrors.PACKAGES_TOO_LARGE(`/${path} has ${entry.size} bytes, at most ${atMost} are read`)
  return Buffer.concat(await pieces(image, entry)).toString('utf8')
}

async function pieces(image: Squashfs, entry: SquashEntry): Promise<Uint8Array[]> {
  const all: Uint8Array[] = []
  for await (const piece of image.read(entry)) all.push(piece)
  return all
}

/**
 * The packages in dpkg's status text: stanzas of `Field: value`, parted by empty lines. Only those whose Status ends
 * in "installed", or that have no Status (status.d), are there.
 * @param path of the file, for messages
 * @throws PACKAGES_INVALID, PACKAGES_TOO_LARGE
 */
export function parseDpkg(text: string, path: string): Package[] {
  return stanzas(text, /^(Package|Version|Architecture|Status):(.*)$/, path).flatMap((fields) => {
    const status = fields.get('Status')
    if (status !== undefined && status.split(' ').at(-1) !== 'installed') return []
    if (!fields.has('Package')) return []
    return [
      {
        manager: 'dpkg',
        name: wanted(fields, 'Package', path),
        version: wanted(fields, 'Version', path),
        arch: wanted(fields, 'Architecture', path),
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
  return stanzas(text, /^([PVA]):(.*)$/, path).map((fields) => ({
    manager: 'apk',
    name: wanted(fields, 'P', path),
    version: wanted(fields, 'V', path),
    arch: wanted(fields, 'A', path),
  }))
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
