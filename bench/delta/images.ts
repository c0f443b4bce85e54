import { execFile } from 'node:child_process'
import { lstat, lutimes, mkdir, mkdtemp, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { debianBase } from '../../demo/images.ts'
import { tool } from '../measure.ts'

/** Pairs of real Debian root file systems, as tars: what a release and its successor look like. Never committed. */

export interface Pair {
  readonly name: string
  readonly what: string
  /** Makes `old.tar` and `next.tar` in a folder. */
  make(folder: string): Promise<void>
}

/** Where the next version is: the point release has one, the security archive of today a newer one. */
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
const SYSTEM =
  'systemd,systemd-sysv,udev,dbus,iproute2,kmod,procps,busybox-static,dmsetup,e2fsprogs,libstdc++6,tzdata,ca-certificates,openssl,less,python3-minimal,openssh-server,nftables,curl'
const demo = resolve(import.meta.dirname, '..', '..', 'demo')
const CLEAN = resolve(import.meta.dirname, '..', 'files', 'clean-root.sh')

/** @param shared folder for what several pairs start from */
export function pairs(shared: string, say: (line: string) => void): readonly Pair[] {
  return [
    {
      name: 'times',
      what: 'an unchanged rebuild, every file a day newer',
      make: (folder) => fromBase(folder, say, dayEarlier, undefined),
    },
    {
      name: 'small',
      what: 'two small programs added, an editor removed',
      make: async (folder) => {
        const { first, second } = await debianBase(say)
        await repack(folder, 'old', first)
        await repack(folder, 'next', second)
      },
    },
    {
      name: 'package',
      what: 'security updates of two packages (libssl3, openssl)',
      make: (folder) => withPackages(folder, ['libssl3', 'openssl'], say),
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
    {
      name: 'debian13',
      what: 'from Debian 12 to Debian 13, the same packages by name',
      make: async (folder) => {
        for (const [name, suite] of [
          ['old', 'bookworm'],
          ['next', 'trixie'],
        ] as const)
          await repack(folder, name, await system(shared, suite, say))
      },
    },
  ]
}

/** A Debian system of one suite, made once. */
async function system(shared: string, suite: string, say: (line: string) => void): Promise<string> {
  const out = join(shared, `${suite}.tar`)
  if (await stat(out).catch(() => undefined)) return out
  say(`mmdebstrap builds ${suite}`)
  const hooks = [`--customize-hook=${join(demo, 'kernel-hook.sh')} "$1" slim`, `--customize-hook=${CLEAN} "$1"`]
  const partial = join(shared, `${suite}.partial.tar`)
  await tool('mmdebstrap', [
    '--quiet',
    '--variant=minbase',
    `--include=${SYSTEM}`,
    ...hooks,
    '--format=tar',
    suite,
    partial,
  ])
  await rename(partial, out)
  return out
}

/** What a virtual machine needs of the kernel's modules: as the demo's hook leaves with `slim`. */
const KEEP =
  '/kernel/(drivers/(md|dax|virtio|block|net/virtio_net|net/net_failover|char/hw_random|watchdog)|net/core/failover|fs/(squashfs|ext4|jbd2|mbcache|fat|nls|overlayfs)|lib|crypto|arch/(x86|arm64)/crypto)'

type Change = ((tree: string) => Promise<void>) | undefined

/** A tree from a tar, changed, as a tar again. The kernel's modules that a virtual machine has no use for are left out. */
async function repack(folder: string, name: string, tar: string, change?: Change, slim = true): Promise<void> {
  const tree = await mkdtemp(join(folder, `tree-${name}-`))
  await tool('tar', ['-xpf', tar, '-C', tree, '--same-owner'])
  await change?.(tree)
  const script = 'find "$1"/usr/lib/modules -name "*.ko*" | grep -Ev "$2" | xargs -r rm -f'
  if (slim) await tool('sh', ['-c', script, '-', tree, KEEP])
  // As those of Debian 12 are, and as the initramfs is made of.
  await tool('sh', ['-c', 'find "$1"/usr/lib/modules -name "*.ko.xz" | xargs -r unxz', '-', tree])
  for (const version of await readdir(join(tree, 'usr/lib/modules'))) await tool('depmod', ['-b', tree, version])
  const made = join(folder, `${name}.partial.tar`)
  await tool('tar', ['--sort=name', '--numeric-owner', '--xattrs', '-cf', made, '-C', tree, '.'])
  await rm(tree, { recursive: true })
  await rename(made, join(folder, `${name}.tar`))
}

async function fromBase(
  folder: string,
  say: (line: string) => void,
  old: Change,
  next: Change,
  slim = true,
): Promise<void> {
  const { second } = await debianBase(say)
  await repack(folder, 'old', second, old, slim)
  await repack(folder, 'next', second, next, slim)
}

/** Earlier, not later: a build refuses files from the future. */
async function dayEarlier(tree: string): Promise<void> {
  // Not by `readdir` with `recursive`, which follows links out of the tree.
  for (const entry of await readdir(tree, { withFileTypes: true })) {
    const path = join(tree, entry.name)
    if (entry.isDirectory()) await dayEarlier(path)
    const { mtimeMs } = await lstat(path)
    await lutimes(path, mtimeMs / 1000 - 86_400, mtimeMs / 1000 - 86_400)
  }
}

/** Packages from Debian's archive as it was at its last point release; then from its security archive of today. */
async function withPackages(folder: string, names: readonly string[], say: (line: string) => void): Promise<void> {
  const put = (archive: string, suite: string) => async (tree: string) => {
    const debs = await mkdtemp(join(folder, 'debs-'))
    const wanted: string[] = []
    for (const name of names) {
      const real = name === KERNEL ? await kernelOf(await versionIn(name, archive, suite)) : name
      wanted.push(`${real}=${await versionIn(real, archive, suite)}`)
    }
    say(`${suite}: ${wanted.join(' ')}`)
    await tool('apt-get', ['download', '-q', ...wanted], { cwd: debs })
    for (const deb of (await readdir(debs)).sort()) {
      if (deb.startsWith('linux-image'))
        await tool('sh', ['-c', 'rm -rf "$1"/boot/*-cloud-amd64 "$1"/usr/lib/modules/*', '-', tree])
      // Debian's /lib is a link: packages that still say lib/ go through it.
      const script = 'dpkg-deb --fsys-tarfile "$1" | tar -xpf - --keep-directory-symlink -C "$2"'
      await tool('sh', ['-c', script, '-', join(debs, deb), tree])
    }
    await rm(debs, { recursive: true })
  }
  const slim = !names.includes(KERNEL)
  await fromBase(folder, say, put('debian', 'bookworm'), put('debian-security', 'bookworm-security'), slim)
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
