import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './run.ts'

const CACHE = join(import.meta.dirname, '../../.cache')
const LIBRARIES = 'lib/x86_64-linux-gnu'

/**
 * What Debian packages bring, fetched and unpacked once into `.cache/`, with the libraries of this machine that their programs
 * need: path to content. Links are what they lead to; documentation is left out.
 */
export function debianFiles(packages: readonly string[]): Record<string, Uint8Array> {
  const folder = join(CACHE, `packages-${packages.join('-')}`)
  if (!existsSync(folder)) {
    const fresh = `${folder}.${process.pid}`
    mkdirSync(join(fresh, 'deb'), { recursive: true })
    run('apt-get', ['-qq', '-o', 'APT::Sandbox::User=root', 'download', ...packages], { cwd: join(fresh, 'deb') })
    for (const name of readdirSync(join(fresh, 'deb'))) run('dpkg-deb', ['-x', join(fresh, 'deb', name), fresh])
    rmSync(join(fresh, 'deb'), { recursive: true })
    renameSync(fresh, folder)
  }
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((path) => !/^usr\/share/.test(path))
  const isFile = (path: string) => statSync(path, { throwIfNoEntry: false })?.isFile() === true
  const files = names.filter((name) => isFile(join(folder, name)))
  const own = new Map(files.map((name) => [name, readFileSync(join(folder, name))]))
  const isProgram = (bytes: Buffer) => bytes.subarray(0, 4).toString('latin1') === '\x7fELF'
  const programs = [...own].filter(([, bytes]) => isProgram(bytes)).map(([name]) => join(folder, name))
  const path = `LD_LIBRARY_PATH=${join(folder, LIBRARIES)}`
  for (const [, library = ''] of run('env', [path, 'ldd', ...programs]).matchAll(/(?:=> |^\s)(\/\S+) \(0x/gm))
    if (!library.startsWith(folder)) own.set(library.slice(1), readFileSync(library))
  return Object.fromEntries(own)
}
