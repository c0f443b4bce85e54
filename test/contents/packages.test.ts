import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { diffPackages } from '../../bundle/diff.ts'
import { type Package, parseApk, parseDpkg, readPackages } from '../../bundle/packages.ts'
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
    expect(parseDpkg('', 'status')).toEqual([])
    expect(parseDpkg('\n\n\n', 'status')).toEqual([])
  })

  it('apk', () => {
    expect(parseApk(installed, 'installed')).toEqual([
      { manager: 'apk', name: 'musl', version: '1.2.5-r0', arch: 'x86_64' },
      { manager: 'apk', name: 'zlib', version: '1.3.1-r1', arch: 'x86_64' },
    ])
  })

  it.skipIf(!existsSync('/var/lib/dpkg/status'))('dpkg: the same list as dpkg-query on a real database', () => {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the format of dpkg-query
    const wanted = tool('dpkg-query', '-W', '-f', '${db:Status-Status} ${Package} ${Version} ${Architecture}\n')
      .split('\n')
      .filter((line) => line.startsWith('installed '))
      .map((line) => line.slice('installed '.length))
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
