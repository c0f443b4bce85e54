import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { homedir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'

/**
 * The zstd addon (`binding.node`) for a device of another processor than this machine's, cross-compiled from the sources
 * in the zstd-napi package. Node.js 22 has a zstd of its own, but publisher and device must have the same one, byte for byte.
 */

const run = promisify(execFile)
const cache = resolve(import.meta.dirname, '..', '.cache', 'addon')
/** Debian: g++-aarch64-linux-gnu. */
const COMPILERS = { arm64: 'aarch64-linux-gnu', x64: 'x86_64-linux-gnu' } as const

/** Path of `binding.node` for a device architecture; compiled once per state of the sources. */
export async function deviceAddon(arch: 'x64' | 'arm64'): Promise<string> {
  const require = createRequire(import.meta.url)
  const folder = dirname(require.resolve('zstd-napi/binding.js'))
  if (arch === process.arch) return join(folder, 'build', 'Release', 'binding.node')
  const version = (JSON.parse(await readFile(join(folder, 'package.json'), 'utf8')) as { version: string }).version
  const key = createHash('sha256').update(`${version} ${await readFile(import.meta.filename, 'utf8')}`)
  const output = join(cache, `zstd-napi-${version}-${arch}-${key.digest('hex').slice(0, 8)}.node`)
  if (existsSync(output)) return output
  await mkdir(cache, { recursive: true })
  const work = await mkdtemp(join(cache, 'compile-'))
  try {
    await compile(folder, COMPILERS[arch], work)
    await rename(join(work, 'binding.node'), output)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
  return output
}

async function compile(folder: string, compiler: string, work: string): Promise<void> {
  const library = join(folder, 'deps', 'zstd', 'lib')
  const files = async (path: string, pattern: RegExp): Promise<string[]> =>
    (await readdir(path)).filter((name) => pattern.test(name)).map((name) => join(path, name))
  const c = (
    await Promise.all(['common', 'compress', 'decompress'].map((part) => files(join(library, part), /\.c$/)))
  ).flat()
  const cc = await files(join(folder, 'src'), /\.cc$/)
  // As the package's own build does (zstd.gyp, binding.gyp), with fixed names so that the result is reproducible.
  const common = ['-O3', '-DNDEBUG', '-fPIC', '-fvisibility=hidden', '-ffile-prefix-map=/=', `-I${library}`]
  const zstd = [
    '-DXXH_NAMESPACE=ZSTD_',
    '-DZSTD_MULTITHREAD',
    '-DZSTD_NO_TRACE',
    '-DZSTD_DISABLE_ASM',
    '-DZSTDLIB_VISIBLE=',
    '-DZSTDERRORLIB_VISIBLE=',
  ]
  const node = [
    ...[
      '-std=c++17',
      '-fexceptions',
      `-I${headers()}`,
      `-I${addonApi(folder)}`,
      '-DNAPI_VERSION=8',
      '-DBUILDING_NODE_EXTENSION',
    ],
    ...['-DNODE_ADDON_API_DISABLE_DEPRECATED', '-DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS'],
    ...['-DNODE_API_NO_EXTERNAL_BUFFERS_ALLOWED', '-DNODE_GYP_MODULE_NAME=binding'],
  ]
  const objects: string[] = []
  const jobs: (readonly [string, readonly string[]])[] = []
  for (const source of [...c, ...cc]) {
    const object = join(work, `${basename(source)}.o`)
    objects.push(object)
    const isC = source.endsWith('.c')
    jobs.push([`${compiler}-${isC ? 'gcc' : 'g++'}`, [...common, ...(isC ? zstd : node), '-c', source, '-o', object]])
  }
  const worker = async (): Promise<void> => {
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) await run(job[0], [...job[1]])
  }
  await Promise.all([worker(), worker()])
  const hardening = ['-Wl,-z,noexecstack,-z,relro,-z,now', '-Wl,--as-needed', '-s']
  await run(`${compiler}-g++`, ['-shared', '-o', join(work, 'binding.node'), ...objects, ...hardening])
}

/** Node-API's headers: any recent version serves, they are stable and hold no code. */
function headers(): string {
  const beside = resolve(dirname(process.execPath), '..', 'include', 'node')
  const places = [
    beside,
    '/usr/include/node',
    join(homedir(), '.cache', 'node-gyp', process.versions.node, 'include', 'node'),
  ]
  const found = places.find((place) => existsSync(join(place, 'node_api.h')))
  if (found === undefined) throw new Error(`no node_api.h in ${places.join(', ')}: run npx node-gyp install`)
  return found
}

function addonApi(folder: string): string {
  const require = createRequire(join(folder, 'binding.js'))
  return dirname(require.resolve('node-addon-api/package.json'))
}
