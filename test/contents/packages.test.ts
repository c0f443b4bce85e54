import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { diffPackages } from '../../bundle/diff.ts'
import { listPackages, type Package, parseApk, parseDpkg, parseRpm, readPackages } from '../../bundle/packages.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { haveTools, type Item, openPath, sqfstar, tool } from '../squashfs/build.ts'

const text = (s: string) => Buffer.from(s)
const status = `Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b7
Description: GNU Bourne Again SHell
 Package: not-a-field
 .

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: held
Status: hold ok installed
Version: 2:1~rc1
Architecture: all
`
const installed = `C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
T:the musl c library
F:lib
R:ld-musl-x86_64.so.1

P:zlib
V:1.3.1-r1
A:x86_64
`

describe('package databases', () => {
  it('dpkg: what is installed, and nothing else', () => {
    expect(parseDpkg(status, 'status')).toEqual([
      { manager: 'dpkg', name: 'bash', version: '5.2.15-2+b7', arch: 'amd64' },
      { manager: 'dpkg', name: 'held', version: '2:1~rc1', arch: 'all' },
    ])
    // Their files are in the image, whatever the build did not get to.
    for (const state of ['triggers-pending', 'triggers-awaited', 'half-configured', 'unpacked', 'half-installed'])
      expect(parseDpkg(status.replace('config-files', state), 'status').map(({ name }) => name)).toContain('gone')
    expect(parseDpkg(status.replace('config-files', 'not-installed'), 'status')).toHaveLength(2)
    expect(parseDpkg('', 'status')).toEqual([])
    expect(parseDpkg('\n\n\n', 'status')).toEqual([])
  })

  it('tells the source package, and the license where the database has it', () => {
    const stanza = (source: string) =>
      `Package: libssl3\nSource: ${source}\nVersion: 3.0.11-1+b1\nArchitecture: amd64\n`
    expect(parseDpkg(stanza('openssl (3.0.11-1)'), 'x')[0]?.source).toBe('openssl 3.0.11-1')
    expect(parseDpkg(stanza('openssl'), 'x')[0]?.source).toBe('openssl 3.0.11-1+b1')
    const apk = parseApk('P:musl-utils\nV:1.2.5-r0\nA:x86_64\nL:MIT AND BSD-2-Clause\no:musl\n', 'x')
    expect(apk[0]).toMatchObject({ source: 'musl 1.2.5-r0', license: 'MIT AND BSD-2-Clause' })
  })

  it('apk', () => {
    expect(parseApk(installed, 'installed')).toEqual([
      { manager: 'apk', name: 'musl', version: '1.2.5-r0', arch: 'x86_64' },
      { manager: 'apk', name: 'zlib', version: '1.3.1-r1', arch: 'x86_64' },
    ])
  })

  it.skipIf(!existsSync('/var/lib/dpkg/status'))('dpkg: the same list as dpkg-query on a real database', () => {
    const wanted = tool('dpkg-query', '-W', '-f', '${db:Status-Status} ${Package} ${Version} ${Architecture}\n')
      .split('\n')
      .filter((line) => line !== '' && !/^(?:not-installed|config-files) /.test(line))
      .map((line) => line.slice(line.indexOf(' ') + 1))
      .sort()
    const found = parseDpkg(readFileSync('/var/lib/dpkg/status', 'utf8'), 'status')
    expect(found.map(({ name, version, arch }) => `${name} ${version} ${arch}`).sort()).toEqual(wanted)
  })

  it('refuses damaged databases', () => {
    const code = (body: string) => codeOf(() => parseDpkg(body, 'status'))
    expect(code('Package: a\nArchitecture: b\n')).toBe('PACKAGES_INVALID')
    expect(code('Package: a\nVersion: 1\nVersion: 2\nArchitecture: b\n')).toBe('PACKAGES_INVALID')
    expect(code('Package: a\u001b[2J\nVersion: 1\nArchitecture: b\n')).toBe('PACKAGES_INVALID')
    expect(code(`Package: ${'a'.repeat(300)}\nVersion: 1\nArchitecture: b\n`)).toBe('PACKAGES_INVALID')
    expect(code('Package: a\nVersion: 1\nArchitecture: b\n\n'.repeat(100_001))).toBe('PACKAGES_TOO_LARGE')
    expect(codeOf(() => parseApk('V:1\nA:x\n', 'installed'))).toBe('PACKAGES_INVALID')
    // A line of many spaces must not take long.
    expect(code(`Package:${' '.repeat(3_000_000)}x\nVersion: 1\nArchitecture: b\n`)).toBe('accepted')
  })
})

/** An rpm header of these tags: strings, and the epoch as a number. */
function rpmHeader(tags: Readonly<Record<number, string | number>>, padding = 0): Buffer {
  const data: Buffer[] = []
  let offset = 0
  const entries = Object.entries(tags).map(([tag, value]) => {
    const entry = Buffer.alloc(16)
    const bytes = typeof value === 'string' ? Buffer.from(`${value}\0`) : Buffer.alloc(4)
    if (typeof value === 'number') bytes.writeUInt32BE(value)
    for (const [i, word] of [Number(tag), typeof value === 'string' ? 6 : 4, offset, 1].entries())
      entry.writeUInt32BE(word, 4 * i)
    data.push(bytes)
    offset += bytes.length
    return entry
  })
  const head = Buffer.alloc(8)
  head.writeUInt32BE(entries.length)
  head.writeUInt32BE(offset + padding, 4)
  return Buffer.concat([head, ...entries, ...data, Buffer.alloc(padding)])
}

/** A database as rpm 4.16 and later have it, made by SQLite itself. */
function rpmDatabase(headers: readonly Buffer[], pageSize = 4096): Buffer {
  const path = join(mkdtempSync(join(tmpdir(), 'bistable-rpm-')), 'rpmdb.sqlite')
  const script = `import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('pragma page_size=' + sys.argv[2])
db.execute('create table Other (a)')
db.execute("create table 'Packages' (hnum integer primary key autoincrement, blob blob not null)")
for line in sys.stdin: db.execute('insert into Packages (blob) values (?)', (bytes.fromhex(line.strip()),))
db.commit()
db.close()`
  const input = headers.map((header) => header.toString('hex')).join('\n')
  execFileSync('python3', ['-c', script, path, String(pageSize)], { input })
  try {
    return readFileSync(path)
  } finally {
    rmSync(dirname(path), { recursive: true })
  }
}

const rpmOf = (name: string, more: Readonly<Record<number, string | number>> = {}) =>
  ({ 1000: name, 1001: '1.2', 1002: '3.fc40', 1022: 'x86_64', ...more }) as const

describe.skipIf(!haveTools('python3'))('rpm', () => {
  it('reads what SQLite wrote: small and large pages, rows over many pages, trees of several levels', () => {
    for (const pageSize of [512, 4096, 65536]) {
      const headers = Array.from({ length: 300 }, (_, i) =>
        rpmHeader(rpmOf(`package-${i}`), [0, 100, 476, 477, 478, 3000, 20_000][i % 7]),
      )
      const found = parseRpm(rpmDatabase(headers, pageSize), 'db')
      expect(found.map(({ name }) => name)).toEqual(headers.map((_, i) => `package-${i}`))
    }
  })

  it('takes epoch, license and source, and leaves imported keys out', () => {
    const key = { 1000: 'gpg-pubkey', 1001: '1', 1002: '2' }
    const full = rpmOf('bash', { 1003: 2, 1014: 'GPL-3.0-or-later', 1044: 'bash-1.2-3.fc40.src.rpm' })
    expect(parseRpm(rpmDatabase([rpmHeader(key), rpmHeader(full)]), 'db')).toEqual([
      {
        manager: 'rpm',
        name: 'bash',
        version: '2:1.2-3.fc40',
        arch: 'x86_64',
        license: 'GPL-3.0-or-later',
        source: 'bash-1.2-3.fc40.src.rpm',
      },
    ])
  })

  it('a damaged database is refused by code or read as another, and always ends', () => {
    const whole = rpmDatabase(
      Array.from({ length: 40 }, (_, i) => rpmHeader(rpmOf(`p${i}`), 700)),
      512,
    )
    expect(codeOf(() => parseRpm(Buffer.alloc(4096), 'db'))).toBe('PACKAGES_INVALID')
    expect(codeOf(() => parseRpm(whole.subarray(0, whole.length / 2), 'db'))).toBe('PACKAGES_INVALID')
    expect(codeOf(() => parseRpm(rpmDatabase([Buffer.from('short')]), 'db'))).toBe('PACKAGES_INVALID')
    expect(codeOf(() => parseRpm(rpmDatabase([rpmHeader({ 1000: 'x' })]), 'db'))).toBe('PACKAGES_INVALID')
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const bytes = Buffer.from(whole)
        bytes[at] = (bytes[at] ?? 0) ^ flip
        expect(['accepted', 'PACKAGES_INVALID', 'PACKAGES_TOO_LARGE']).toContain(codeOf(() => parseRpm(bytes, 'db')))
      }),
      { numRuns: 1000 },
    )
  })
})

describe.skipIf(!haveTools('sqfstar'))('packages of an image', () => {
  const folders = (...paths: string[]) => paths.map((path): Item => ({ path, type: 'dir', mode: 0o755 }))

  it('finds dpkg, distroless and apk databases', async () => {
    const { image } = await openPath(
      await sqfstar([
        ...folders('lib', 'lib/apk', 'lib/apk/db', 'var', 'var/lib', 'var/lib/dpkg', 'var/lib/dpkg/status.d'),
        { path: 'lib/apk/db/installed', type: 'file', content: text(installed) },
        { path: 'var/lib/dpkg/status', type: 'file', content: text(status) },
        {
          path: 'var/lib/dpkg/status.d/base',
          type: 'file',
          content: text('Package: base-files\nVersion: 12\nArchitecture: amd64\n'),
        },
        { path: 'var/lib/dpkg/status.d/base.md5sums', type: 'file', content: text('d41d8cd98f00b204 etc/x\n') },
      ]),
    )
    const found = await readPackages(image)
    expect(found.map(({ name }) => name)).toEqual(['base-files', 'bash', 'held', 'musl', 'zlib'])
  })

  it('finds the rpm database, and names what it cannot read', async () => {
    const file = (path: string, content: Uint8Array): Item => ({ path, type: 'file', content })
    const { image } = await openPath(
      await sqfstar([
        ...folders('usr', 'usr/lib', 'usr/lib/sysimage', 'usr/lib/sysimage/rpm', 'var', 'var/lib', 'var/lib/rpm'),
        file('usr/lib/sysimage/rpm/rpmdb.sqlite', rpmDatabase([rpmHeader(rpmOf('bash'))])),
        file('usr/lib/sysimage/rpm/rpmdb.sqlite-wal', Buffer.alloc(0)),
        file('var/lib/rpm/Packages', Buffer.alloc(10)),
        file('var/lib/rpm/rpmdb.sqlite-wal', Buffer.alloc(4152)),
      ]),
    )
    const { packages, unread } = await listPackages(image)
    expect(packages.map(({ name, version }) => `${name} ${version}`)).toEqual(['bash 1.2-3.fc40'])
    expect(unread).toEqual(['var/lib/rpm/Packages', 'var/lib/rpm/rpmdb.sqlite-wal'])
  })

  it('an image without packages has none; a directory in place of a database is not one', async () => {
    const { image } = await openPath(await sqfstar(folders('lib', 'lib/apk', 'lib/apk/db', 'lib/apk/db/installed')))
    expect(await readPackages(image)).toEqual([])
  })

  it('refuses a database of a size that no database has', async () => {
    const huge: Item = { path: 'var/lib/dpkg/status', type: 'file', content: Buffer.alloc(65 * 1024 * 1024) }
    const { image } = await openPath(await sqfstar([...folders('var', 'var/lib', 'var/lib/dpkg'), huge]))
    expect(await codeOfAsync(() => readPackages(image))).toBe('PACKAGES_TOO_LARGE')
  })
})

describe('package differences', () => {
  const deb = (name: string, version: string, arch = 'amd64'): Package => ({ manager: 'dpkg', name, version, arch })

  it('added, removed, changed; several versions side by side', () => {
    const before = [deb('same', '1'), deb('up', '1'), deb('gone', '1'), deb('multi', '1'), deb('multi', '1', 'i386')]
    const after = [
      deb('same', '1'),
      deb('up', '2'),
      deb('new', '1'),
      deb('multi', '1'),
      deb('multi', '2'),
      deb('multi', '3'),
    ]
    expect(diffPackages(before, after)).toEqual({
      added: [deb('multi', '2'), deb('multi', '3'), deb('new', '1')],
      removed: [deb('gone', '1'), deb('multi', '1', 'i386')],
      changed: [{ before: deb('up', '1'), after: deb('up', '2') }],
    })
    expect(diffPackages(before, before)).toEqual({ added: [], removed: [], changed: [] })
  })
})
