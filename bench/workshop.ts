import { existsSync } from 'node:fs'
import { copyFile, cp, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { type Flavour, imageFactory } from '../demo/images.ts'
import { TARGETS } from '../demo/targets.ts'
import { deviceNode } from '../scripts/device-node.ts'
import { type Measured, measure, together, tool } from './measure.ts'

/** What every bench starts from: the built command line, keys, one real root file system as an OCI image. */

const root = resolve(import.meta.dirname, '..')

export interface Workshop {
  /** Scratch folder; the caller removes it. */
  readonly folder: string
  readonly say: (line: string) => void
  readonly flavour: Flavour
  /** zstd level of the root file system. */
  readonly level: number
  /** Folder of N.json, and the newest of them. */
  readonly roots: string
  readonly rootStatement: string
  /** The publisher's command line. */
  bistable(args: readonly string[]): Promise<Measured>
  /** Node.js and the agent as they are on a device. */
  readonly device: {
    readonly node: string
    readonly agent: string
    /** `/usr/bin/bistable` of a device, with the folder of the agent here. */
    readonly launcher: string
  }
  /** Signs a build folder and packs it; two processes. */
  signAndPack(build: string, bundle: string): Promise<Measured>
  /** The image; made once. */
  image(): Promise<string>
  /** Its build folder and bundle; made once. */
  release(): Promise<Release>
  /** Hands in the product of a bench that built the image anyway. */
  keepRelease(release: Release): void
}

export interface Release {
  readonly build: string
  readonly bundle: string
}

export const PRODUCT = 'demo-appliance'

export async function openWorkshop(options: {
  readonly folder: string
  readonly flavour: Flavour
  readonly level: number
  /** Where keys are, or will be made. */
  readonly keys?: string
  readonly say: (line: string) => void
}): Promise<Workshop> {
  const { folder, flavour, level, say, keys = join(folder, 'keys') } = options
  await tool(process.execPath, [join(root, 'scripts', 'build.mjs')])
  // A copy: nothing that is built beside us meanwhile changes what is measured.
  const dist = join(folder, 'program', 'dist')
  await cp(join(root, 'dist'), dist, { recursive: true })
  await copyFile(join(root, 'package.json'), join(folder, 'program', 'package.json'))
  for (const part of ['bin', 'systemd'])
    await cp(join(root, 'device', part), join(folder, 'program', 'device', part), { recursive: true })
  const bistable = (args: readonly string[]) => measure(process.execPath, [join(dist, 'bistable.mjs'), ...args])

  const secret = join(folder, 'passphrase')
  await writeFile(secret, 'a passphrase of the bench\n', { mode: 0o600 })
  const rootStatement = join(keys, 'root.json')
  if (!existsSync(rootStatement)) {
    await mkdir(dirname(keys), { recursive: true })
    await bistable(['keys', 'init', keys, '--product', PRODUCT, '--passphrase-file', secret])
  }
  const roots = join(keys, 'roots')

  const signAndPack = async (build: string, bundle: string): Promise<Measured> => {
    const key = join(keys, 'release-1.key')
    const signed = await bistable(['sign', build, '--key', key, '--passphrase-file', secret])
    return together([signed, await bistable(['pack', build, '--roots', roots, '--output', bundle])])
  }
  const makeImage = async (): Promise<string> => {
    const work = join(folder, 'oci')
    await mkdir(work)
    const factory = await imageFactory({ flavour, target: TARGETS.x86, work, rootStatement, say })
    const image = await factory.release({ tag: 'r1', version: '1.0.0', app: 'app' })
    await addInit(work, `${factory.layout}:r1`, flavour === 'fast' ? 'sbin/init' : 'usr/lib/systemd/systemd')
    return image
  }
  let image: Promise<string> | undefined
  let release: Promise<Release> | undefined
  const workshop: Workshop = {
    folder,
    say,
    flavour,
    level,
    roots,
    rootStatement,
    bistable,
    device: await deviceProgram(dist, folder),
    signAndPack,
    image: () => {
      image ??= makeImage()
      return image
    },
    release: () => {
      release ??= buildOnce(workshop, join(folder, 'release')).then(({ release: made }) => made)
      return release
    },
    keepRelease: (made) => {
      release = Promise.resolve(made)
    },
  }
  return workshop
}

/** The launcher as it ships, made to look for its agent, and for the Node.js of devices, in a folder of the bench. */
async function deviceProgram(dist: string, folder: string): Promise<Workshop['device']> {
  const agent = join(folder, 'agent')
  const node = await deviceNode('x64')
  await cp(join(dist, 'device'), agent, { recursive: true })
  await symlink(node, join(agent, 'node'))
  const shipped = await readFile(join(root, 'device', 'bin', 'bistable'), 'utf8')
  const text = shipped.replace('agent=/usr/lib/bistable/agent\n', () => `agent='${agent}'\n`)
  if (text === shipped) throw new Error('device/bin/bistable names its folder in another way')
  const launcher = join(folder, 'launcher')
  await writeFile(launcher, text, { mode: 0o755 })
  return { node, agent: join(dist, 'device', 'bistable.mjs'), launcher }
}

/** A layer on top with the bench's own first program, which says when it came up. */
async function addInit(work: string, image: string, path: string): Promise<void> {
  const layer = join(work, 'init-layer')
  await mkdir(join(layer, dirname(path)), { recursive: true })
  await copyFile(join(import.meta.dirname, 'files', 'init'), join(layer, path))
  const owner = ['--owner=0', '--group=0', '--numeric-owner', '--mode=0755']
  await tool('tar', ['-C', layer, ...owner, '--mtime=@1763683200', '-cf', `${layer}.tar`, path])
  await tool('umoci', ['raw', 'add-layer', '--image', image, `${layer}.tar`])
}

/** Build, sign, pack into a new folder. */
export async function buildOnce(
  workshop: Workshop,
  folder: string,
): Promise<{ readonly measured: Measured; readonly release: Release }> {
  const image = await workshop.image()
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  const release = { build: join(folder, 'release.build'), bundle: join(folder, 'release.bundle') }
  const args = ['--version', '1.0.0', '--counter', '1', '--level', String(workshop.level)]
  const built = await workshop.bistable(['build', image, '--output', release.build, ...args])
  return { measured: together([built, await workshop.signAndPack(release.build, release.bundle)]), release }
}

/** The statement of a build folder, as far as the benches need it. */
export async function imagesOf(build: string): Promise<readonly { name: string; length: number; root: string }[]> {
  const statement = JSON.parse(await readFile(join(build, 'statement.json'), 'utf8')) as {
    images: { name: string; length: number; root: string }[]
  }
  return statement.images
}
