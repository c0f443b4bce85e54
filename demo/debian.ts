import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'

// What is made of Debian's packages, by mmdebstrap, and kept below .cache/demo.

const run = promisify(execFile)
const here = import.meta.dirname
const root = resolve(here, '..')
export const cache = join(root, '.cache', 'demo')
const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }

/** Debian with another init than systemd; nothing of bistable is in these images, `build --agent` puts it there. */
export type OtherInit = 'sysvinit' | 'openrc'

export async function tool(command: string, args: readonly string[]): Promise<void> {
  await run(command, [...args], { env, maxBuffer: 16 * 1024 * 1024 })
}

/** Runs `make` into a temporary name unless the cached file is there; the key holds everything it depends on. */
export async function cached(
  name: string,
  key: readonly string[],
  say: (line: string) => void,
  make: (out: string) => Promise<void>,
): Promise<string> {
  const digest = createHash('sha256').update(key.join('\0')).digest('hex').slice(0, 12)
  const path = join(cache, `${name}-${digest}.tar`)
  try {
    await stat(path)
    say(`${name}: taken from ${path.slice(root.length + 1)}`)
    return path
  } catch {
    await mkdir(cache, { recursive: true })
    const partial = `${path}.partial`
    await make(partial)
    await rename(partial, path)
    return path
  }
}

/** Debian's own packages, set up by their own scripts. */
export async function otherInit(name: OtherInit, say: (line: string) => void): Promise<string> {
  const inits = { sysvinit: 'sysvinit-core,sysv-rc', openrc: 'sysvinit-core,openrc' }
  const packages = `${inits[name]},udev,iproute2,kmod,procps,busybox-static,dmsetup,e2fsprogs,libstdc++6`
  const folder = join(here, 'files', 'inits')
  const texts = await Promise.all((await readdir(folder)).sort().map((file) => readFile(join(folder, file), 'utf8')))
  const kernelHook = join(here, 'kernel-hook.sh')
  return await cached(name, [packages, await readFile(kernelHook, 'utf8'), ...texts], say, async (out) => {
    say(`${name}: mmdebstrap builds Debian 12 with it (a minute)`)
    await tool('mmdebstrap', [
      ...['--quiet', '--variant=essential', `--include=${packages}`],
      ...[`--customize-hook=${kernelHook} "$1" slim`, `--customize-hook=${join(folder, 'hook.sh')} "$1"`],
      ...['--format=tar', 'bookworm', out],
    ])
  })
}

/** Packages without what they depend on, unpacked: a tar. */
export async function debianPackages(packages: readonly string[], say: (line: string) => void): Promise<string> {
  return await cached(`packages-${packages[0]}`, packages, say, async (out) => {
    say(`apt-get downloads ${packages.join(', ')}`)
    const work = `${out}.work`
    const tree = join(work, 'tree')
    await rm(work, { recursive: true, force: true })
    await mkdir(tree, { recursive: true })
    // mmdebstrap's own apt configuration: its lists are fresh, whatever this machine has.
    const download = `cd ${work} && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq -o APT::Sandbox::User=root download`
    const hook = `--customize-hook=${download} ${packages.join(' ')}`
    await tool('mmdebstrap', ['--quiet', '--variant=custom', hook, '--format=null', 'bookworm', '-'])
    for (const name of await readdir(work))
      if (name.endsWith('.deb')) await tool('dpkg-deb', ['-x', join(work, name), tree])
    await tool('tar', ['-C', tree, '--sort=name', '-cf', out, '.'])
    await rm(work, { recursive: true })
  })
}
