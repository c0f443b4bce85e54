import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './run.ts'

const CACHE = join(import.meta.dirname, '../../.cache')

/**
 * A Debian kernel with its modules, unpacked once into `.cache/`; the folder is shaped like a root. The cloud kernel is
 * small; the generic one has the drivers of hardware that no cloud has.
 */
export function debianKernel(flavour: 'cloud' | 'generic' = 'cloud'): {
  readonly root: string
  readonly release: string
  readonly vmlinuz: string
} {
  const meta = flavour === 'cloud' ? 'linux-image-cloud-amd64' : 'linux-image-amd64'
  const root = join(CACHE, flavour === 'cloud' ? 'kernel' : 'kernel-generic')
  if (!existsSync(root)) {
    const fresh = join(CACHE, `kernel-${flavour}.${process.pid}`)
    rmSync(fresh, { recursive: true, force: true })
    mkdirSync(join(fresh, 'deb'), { recursive: true })
    if (packageName(meta) === undefined) run('apt-get', ['-qq', 'update'])
    const name = packageName(meta)
    if (name === undefined) throw new Error(`apt knows no ${meta}`)
    run('apt-get', ['-qq', '-o', 'APT::Sandbox::User=root', 'download', name], { cwd: join(fresh, 'deb') })
    const [deb = ''] = readdirSync(join(fresh, 'deb'))
    run('dpkg-deb', ['-x', join(fresh, 'deb', deb), fresh])
    rmSync(join(fresh, 'deb'), { recursive: true })
    run('depmod', ['-b', fresh, releaseOf(fresh)])
    renameSync(fresh, root)
  }
  const release = releaseOf(root)
  return { root, release, vmlinuz: join(root, 'boot', `vmlinuz-${release}`) }
}

/** The versioned package behind the meta package; undefined while apt has no lists. */
function packageName(meta: string): string | undefined {
  const text = run('apt-cache', ['depends', meta], { ok: [0, 100] })
  return /Depends: (linux-image-[0-9]\S+-amd64)/.exec(text)?.[1]
}

function releaseOf(root: string): string {
  const [release] = readdirSync(join(root, 'lib/modules'))
  if (release === undefined) throw new Error(`no modules in ${root}`)
  return release
}
