import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { debianBase } from '../demo/images.ts'
import { tool } from './measure.ts'

/** Pairs of real Debian 12 root file systems, as tars: what a release and its successor look like. Never committed. */

export interface Pair {
  readonly name: string
  readonly what: string
  /** Makes the two tars in a folder. */
  make(folder: string): Promise<{ readonly old: string; readonly next: string }>
}

/** From Debian's archive as it was at its last point release to its security archive of today. */
const SECURITY = [
  'libssl3',
  'openssl',
  'libperl5.36',
  'perl-base',
  'perl-modules-5.36',
  'libpython3.11-minimal',
  'libpython3.11-stdlib',
  'python3.11-minimal',
  'libexpat1',
  'bind9-libs',
  'bind9-host',
]
const KERNEL = 'linux-image-cloud-amd64'

export function pairs(say: (line: string) => void): readonly Pair[] {
  return [
    {
      name: 'small',
      what: 'two small programs added, manual pages removed',
      make: async () => {
        const { first, second } = await debianBase(say)
        return { old: first, next: second }
      },
    },
    {
      name: 'security',
      what: `security updates of ${SECURITY.length} packages (openssl, perl, python3.11, expat, bind9)`,
      make: (folder) => withPackages(folder, SECURITY, say),
    },
    {
      name: 'large',
      what: 'the same, and another kernel with all its modules',
      make: (folder) => withPackages(folder, [...SECURITY, KERNEL], say),
    },
  ]
}

async function withPackages(folder: string, names: readonly string[], say: (line: string) => void) {
  const { second } = await debianBase(say)
  const made: string[] = []
  for (const [side, archive, suite] of [
    ['old', 'debian', 'bookworm'],
    ['next', 'debian-security', 'bookworm-security'],
  ] as const) {
    const debs = await mkdtemp(join(folder, `debs-${side}-`))
    const wanted: string[] = []
    for (const name of names) {
      const real = name === KERNEL ? await kernelOf(await versionIn(name, archive, suite)) : name
      wanted.push(`${real}=${await versionIn(real, archive, suite)}`)
    }
    say(`${side}: ${wanted.join(' ')}`)
    await tool('apt-get', ['download', '-q', ...wanted], { cwd: debs })
    const tree = await mkdtemp(join(folder, `tree-${side}-`))
    await tool('tar', ['-xpf', second, '-C', tree, '--same-owner'])
    for (const deb of (await readdir(debs)).sort()) {
      if (deb.startsWith('linux-image'))
        await tool('sh', ['-c', 'rm -rf "$1"/boot/*-cloud-amd64 "$1"/usr/lib/modules/*', '-', tree])
      // Debian's /lib is a link: packages that still say lib/ go through it.
      const script = 'dpkg-deb --fsys-tarfile "$1" | tar -xpf - --keep-directory-symlink -C "$2"'
      await tool('sh', ['-c', script, '-', join(debs, deb), tree])
    }
    for (const version of await readdir(join(tree, 'usr/lib/modules'))) await tool('depmod', ['-b', tree, version])
    const tar = join(folder, `${side}.tar`)
    await tool('tar', ['--sort=name', '--numeric-owner', '-cf', tar, '-C', tree, '.'])
    await rm(tree, { recursive: true })
    made.push(tar)
  }
  const [old = '', next = ''] = made
  return { old, next }
}

/** The version of a package in one of Debian's archives. */
async function versionIn(name: string, archive: string, suite: string): Promise<string> {
  const { stdout } = await promisify(execFile)('apt-cache', ['madison', name])
  const line = stdout.split('\n').find((text) => text.includes(`/${archive} ${suite}/main `))
  const version = line?.split('|')[1]?.trim()
  if (version === undefined) throw new Error(`${suite} has no ${name}; is it among apt's sources?`)
  return version
}

/** The package with the kernel itself, of a version of the package that names the newest. */
async function kernelOf(version: string): Promise<string> {
  const { stdout } = await promisify(execFile)('apt-cache', ['depends', `${KERNEL}=${version}`])
  const name = /Depends: (linux-image-\S+)/.exec(stdout)?.[1]
  if (name === undefined) throw new Error(`${KERNEL} ${version} names no kernel`)
  return name
}

/** What `bistable build` wants to know of such a system. */
export async function systemFile(folder: string, product: string): Promise<string> {
  await mkdir(folder, { recursive: true })
  const path = join(folder, 'system.json')
  const system = { product, hardware: ['qemu-x86_64'], owned: ['/etc/machine-id'], kernelArgs: ['console=ttyS0'] }
  await writeFile(path, JSON.stringify(system))
  return path
}
