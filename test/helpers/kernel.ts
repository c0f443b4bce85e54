import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './run.ts'

/**
 * Arguments for a kernel on an emulated processor. On a busy machine the emulated timer is late, and the kernel's check of it can
 * end in a panic; guards against speculation are what the emulator is slowest at, and guard against nothing there.
 */
export const EMULATED = 'no_timer_check mitigations=off'

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
  if (!existsSync(root)) run('sh', [join(import.meta.dirname, 'fetch-kernel.sh'), meta, root])
  const release = releaseOf(root)
  return { root, release, vmlinuz: join(root, 'boot', `vmlinuz-${release}`) }
}

function releaseOf(root: string): string {
  const [release] = readdirSync(join(root, 'lib/modules'))
  if (release === undefined) throw new Error(`no modules in ${root}`)
  return release
}
