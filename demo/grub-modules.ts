import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const cache = resolve(import.meta.dirname, '..', '.cache', 'grub')

/**
 * GRUB's modules for another processor than this machine's, from Debian's package, unpacked once into `.cache/grub`:
 * apt installs it on a machine of that processor only.
 */
export async function grubModules(debian: 'arm64'): Promise<string> {
  const folder = join(cache, debian)
  const modules = join(folder, 'usr', 'lib', 'grub', `${debian}-efi`)
  if (await stat(modules).catch(() => undefined)) return modules
  await mkdir(cache, { recursive: true })
  const work = await mkdtemp(join(cache, 'making-'))
  try {
    const tar = join(work, 'packages.tar')
    const wanted = [`--include=grub-efi-${debian}-bin`, `--architectures=${debian}`]
    await run('mmdebstrap', ['--quiet', '--variant=extract', ...wanted, '--format=tar', 'bookworm', tar])
    const out = join(work, 'out')
    await mkdir(out)
    await run('tar', ['-C', out, '-xf', tar, './usr/lib/grub'])
    // Another run may have made the same meanwhile.
    await rename(out, folder).catch(() => stat(modules))
  } finally {
    await rm(work, { recursive: true, force: true })
  }
  return modules
}
