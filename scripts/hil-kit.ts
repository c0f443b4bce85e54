import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { debianPackages } from '../demo/debian.ts'
import { imageFactory, type ReleaseSpec } from '../demo/images.ts'
import { bistable } from '../demo/publisher.ts'
import type { BootloaderName } from '../demo/targets.ts'
import { deviceNode } from './device-node.ts'
import { KIT_PLANS, type KitAddon, type KitPlan } from './hil-kit-plans.ts'

// The test kit of the hardware-in-the-loop suites: keys, disk images and bundles of a system (hil-kit-plans.ts), made once
// per state of the sources into .cache/hil/x86-DIGEST. Prints the folder as its last line. usage: hil-kit.ts [x86|arm64|debian|sysvinit|openrc]

const run = promisify(execFile)
const root = resolve(import.meta.dirname, '..')
const cache = join(root, '.cache', 'hil')
const name = Object.keys(KIT_PLANS).find((known): known is keyof typeof KIT_PLANS => known === process.argv[2]) ?? 'x86'
const plan: KitPlan = KIT_PLANS[name]
const KEPT_KITS = 2
/** A kit is kept for so long after its last use, whatever came after it. */
const KEPT_MS = 3 * 3_600_000
/** Where one is being made. */
const MAKING = 'making-'
/** No kit takes so long to make. */
const ABANDONED_MS = 24 * 3_600_000

/** Everything that a byte of the kit depends on, the Debian packages aside. */
const INPUTS = [
  'base',
  'keys',
  'bundle',
  'broker',
  'bootloader',
  'initramfs',
  'publisher',
  'device',
  'demo',
  'main.ts',
].concat([
  'package-lock.json',
  'scripts/build.mjs',
  'scripts/device-addon.ts',
  'scripts/device-node.ts',
  'scripts/hil-kit.ts',
  'scripts/hil-kit-plans.ts',
])

/**
 * For a kit that differs from another in little: `HIL_KIT_FROM=FOLDER` is that other one, and only the bundles and disks
 * named in `HIL_KIT_ONLY` (such as `base,disk-grub.img`) are made, with its keys; all else is linked.
 */
const FROM = process.env['HIL_KIT_FROM']
const ONLY = FROM === undefined ? undefined : (process.env['HIL_KIT_ONLY'] ?? '').split(',')
const isWanted = (name: string) => ONLY?.includes(name) ?? true

async function inputDigest(): Promise<string> {
  const hash = createHash('sha256')
    .update(process.arch)
    .update(FROM === undefined ? '' : `${basename(FROM)} ${ONLY}`)
  for (const input of INPUTS) {
    const path = join(root, input)
    const names = (await stat(path)).isDirectory()
      ? (await readdir(path, { recursive: true, withFileTypes: true }))
          .filter((entry) => entry.isFile() && !entry.name.endsWith('.test.ts'))
          .map((entry) => join(entry.parentPath, entry.name))
          .sort()
      : [path]
    for (const name of names)
      hash.update(`${name.slice(root.length)}\0`).update(
        createHash('sha256')
          .update(await readFile(name))
          .digest(),
      )
  }
  return hash.digest('hex').slice(0, 16)
}

const STRANGERS = [
  ['rotated', '2.1'],
  ['foreign', '1.9'],
  ['board', '1.9'],
] as const

/** Systems that come without the agent get it as any image does. */
async function agent(): Promise<readonly string[]> {
  if (plan.flavour === 'fast' || plan.flavour === 'debian') return []
  return ['--agent', join(root, 'dist', 'device'), '--node', await deviceNode(plan.target.arch)]
}

/** A folder `usr` with what these Debian packages bring. An add-on has nothing else; nobody reads manuals there. */
async function unpackPackages(packages: readonly string[], tree: string): Promise<void> {
  const tar = await debianPackages(packages, (line) => console.log(`hil kit: ${line}`))
  await run('tar', ['-C', tree, '--exclude=./usr/share', '-xf', tar, './usr'])
}

type Signer = Awaited<ReturnType<typeof signer>>

/** A key folder, and the steps from an image to a bundle that is signed with it. */
async function signer(folder: string, product: string, passphrase: string) {
  const keys = join(folder, `keys-${product}`)
  if (FROM === undefined) await bistable(['keys', 'init', keys, '--product', product, '--passphrase-file', passphrase])
  else {
    await cp(join(FROM, basename(keys)), keys, { recursive: true })
    // As before the rotation, which comes last.
    await rm(join(keys, 'roots', '2.json'), { force: true })
  }
  const rootStatement = join(keys, 'root.json')
  const signKey = (number: number) => ['--key', join(keys, `release-${number}.key`), '--passphrase-file', passphrase]
  let signing = 1
  return {
    rootStatement,
    /** From now on with another release key and in another epoch: root version 2 takes the first key for stolen. */
    rotate: async () => {
      const [first, second] = [join(keys, 'roots', '1.json'), join(keys, 'roots', '2.json')]
      const added = join(keys, 'release-2.key')
      await bistable(['keys', 'generate', added, '--passphrase-file', passphrase])
      const replaced = ['--add', `release=${added}`, '--raise-epoch', '--out', second]
      const revoked = ['keys', 'revoke', first, join(keys, 'release-1.key'), ...replaced]
      await bistable(revoked)
      for (const owner of [1, 2])
        await bistable([
          'keys',
          'sign',
          second,
          '--key',
          join(keys, `root-${owner}.key`),
          '--passphrase-file',
          passphrase,
        ])
      signing = 2
    },
    /** @param more of system.json */
    bundle: async (image: string, name: string, counter: number, more: object = {}) => {
      const epoch = signing
      const system = join(folder, `${name}.json`)
      await writeFile(system, `${JSON.stringify({ ...plan.system, product, ...more }, null, 2)}\n`)
      const build = join(folder, `${name}.build`)
      const output = join(folder, `${name}.bundle`)
      const number = ['--version', `${counter}.0`, '--epoch', String(epoch), '--counter', String(counter)]
      const declared = ['--system', system, '--root', rootStatement]
      await bistable(['build', image, '--output', build, ...number, ...declared, ...(await agent()), '--level', '1'])
      await bistable(['sign', build, ...signKey(signing)])
      await bistable(['pack', build, '--roots', join(keys, 'roots'), '--output', output])
      await rm(build, { recursive: true })
      await rm(system)
      console.log(`hil kit: bundle ${name}, release ${epoch}.${counter}`)
    },
    /** An add-on for release `base`, as `NAME.addon`. */
    addon: async (name: string, { kind, packages }: KitAddon) => {
      const tree = join(folder, `${name}.tree`)
      await mkdir(join(tree, 'usr/bin'), { recursive: true })
      if (packages === undefined)
        await writeFile(join(tree, 'usr/bin', name), `#!/bin/sh\necho ${name} from the add-on\n`, { mode: 0o755 })
      else await unpackPackages(packages, tree)
      const build = join(folder, `${name}.build`)
      const base = ['--base', join(folder, 'base.bundle')]
      await bistable(['addon', 'build', tree, '--name', name, ...kind, ...base, '--output', build])
      await bistable(['addon', 'sign', build, ...signKey(signing)])
      const output = ['--output', join(folder, `${name}.addon`)]
      await bistable(['addon', 'pack', build, '--roots', join(keys, 'roots'), ...output])
      await rm(build, { recursive: true })
      await rm(tree, { recursive: true })
    },
  }
}

/** Images and bundles, all those that are wanted. */
async function makeBundles(folder: string, work: string, passphrase: string, own: Signer): Promise<void> {
  // What goes into the images is built from the sources that the digest names, unless it just was.
  if (process.env['HIL_KIT_BUILT'] === undefined) await run(process.execPath, [join(root, 'scripts', 'build.mjs')])
  const images = await imageFactory({
    flavour: plan.flavour,
    target: plan.target,
    work,
    rootStatement: own.rootStatement,
    say: (line) => console.log(`hil kit: ${line}`),
  })
  const references = new Map<string, string>()
  for (const { name, spec } of plan.releases) {
    if (!isWanted(name) || references.has(spec.tag)) continue
    references.set(spec.tag, await images.release(spec))
    const files = plan.files[spec.tag] ?? {}
    for (const [path, text] of Object.entries(files)) {
      const file = join(work, 'inserted')
      await writeFile(file, text, { mode: 0o755 })
      await run('umoci', ['insert', '--image', `${images.layout}:${spec.tag}`, file, path])
    }
  }
  const image = (spec: ReleaseSpec) => references.get(spec.tag) ?? ''
  const good = references.get('good') ?? ''
  const jobs = plan.releases
    .filter(({ name }) => isWanted(name))
    .map(
      ({ name, counter, spec, system }) =>
        () =>
          own.bundle(image(spec), name, counter, system),
    )
  if (plan.strangers && isWanted('foreign')) {
    const foreign = await signer(folder, 'other-appliance', passphrase)
    jobs.push(() => foreign.bundle(good, 'foreign', 9))
  }
  if (plan.strangers && isWanted('board'))
    jobs.push(() => own.bundle(good, 'board', 9, { hardware: ['another-board'] }))
  // Two at a time: a build is partly one thread.
  const workers = [0, 1].map(async () => {
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) await job()
  })
  await Promise.all(workers)
  if (isWanted('base')) for (const [name, addon] of Object.entries(plan.addons)) await own.addon(name, addon)
  // The last one: what was packed before knows only the first root.
  if (plan.strangers && isWanted('rotated')) {
    await own.rotate()
    await own.bundle(good, 'rotated', 1)
  }
}

async function make(folder: string): Promise<void> {
  const work = join(folder, 'work')
  await mkdir(work)
  const passphrase = join(work, 'passphrase')
  await writeFile(passphrase, 'a passphrase for tests\n', { mode: 0o600 })
  const own = await signer(folder, 'hil-appliance', passphrase)
  if (ONLY?.every((part) => part.startsWith('disk-')) !== true) await makeBundles(folder, work, passphrase, own)
  const disks: Partial<Record<BootloaderName, string>> = {}
  if (FROM !== undefined) await linkTheRest(FROM, folder)
  const { sizes } = plan
  for (const [bootloader, options] of Object.entries(plan.target.disk) as [
    BootloaderName,
    () => Promise<readonly string[]>,
  ][]) {
    if (!plan.disks.includes(bootloader)) continue
    const file = `disk-${bootloader}.img`
    disks[bootloader] = file
    if (!isWanted(file)) continue
    await bistable([
      ...['disk', join(folder, 'base.bundle'), '--root', own.rootStatement, '--output', join(folder, file)],
      ...['--slot-rootfs', sizes.rootfs, '--slot-boot', sizes.boot, '--data', sizes.data, ...(await options())],
    ])
  }
  await rm(work, { recursive: true })
  const bundles = Object.fromEntries([
    ...plan.releases.map(({ name, counter }) => [name, { file: `${name}.bundle`, release: `1.${counter}` }]),
    ...(plan.strangers ? STRANGERS : []).map(([name, release]) => [name, { file: `${name}.bundle`, release }]),
  ])
  const addons = Object.fromEntries(Object.keys(plan.addons).map((name) => [name, `${name}.addon`]))
  await writeFile(
    join(folder, 'kit.json'),
    `${JSON.stringify({ disks, product: plan.system.product, bundles, addons }, null, 2)}\n`,
  )
}

/** What was not made here is the other kit's; its saved devices too, unless a disk is another. */
async function linkTheRest(from: string, folder: string): Promise<void> {
  const made = new Set(await readdir(folder))
  const otherDisk = ONLY?.some((name) => name.startsWith('disk-'))
  for (const name of await readdir(from)) {
    const saved = /^(?:running|armed-(?<release>\w+))-/.exec(name)
    const otherRelease = saved?.groups?.['release'] !== undefined && isWanted(saved.groups['release'])
    if (saved !== null && (otherDisk || otherRelease)) continue
    if (made.has(name) || isWanted(name) || /^(?:saving|kit\.json)/.test(name)) continue
    await symlink(join(from, name), join(folder, name))
  }
}

async function dropOldKits(): Promise<void> {
  const kits = []
  for (const entry of await readdir(cache)) {
    // Another run may have finished it meanwhile.
    const at = (await stat(join(cache, entry)).catch(() => undefined))?.mtimeMs ?? Date.now()
    if (entry.startsWith(`${name}-`)) kits.push({ entry, at })
    // Of a run that was killed.
    if (entry.startsWith(MAKING) && Date.now() - at > ABANDONED_MS)
      await rm(join(cache, entry), { recursive: true, force: true })
  }
  kits.sort((a, b) => b.at - a.at)
  // A run that began an hour ago may still use its kit.
  const unused = kits.slice(KEPT_KITS).filter(({ at }) => Date.now() - at > KEPT_MS)
  for (const { entry } of unused) await rm(join(cache, entry), { recursive: true, force: true })
}

const folder = join(cache, `${name}-${await inputDigest()}`)
try {
  await stat(join(folder, 'kit.json'))
} catch {
  await mkdir(cache, { recursive: true })
  const partial = await mkdtemp(join(cache, MAKING))
  try {
    const start = Date.now()
    await make(partial)
    // Another run may have made the same kit meanwhile: its bytes do as well.
    await rename(partial, folder).catch(() => stat(join(folder, 'kit.json')))
    console.log(`hil kit: made in ${((Date.now() - start) / 1000).toFixed(0)} s`)
    await dropOldKits()
  } finally {
    await rm(partial, { recursive: true, force: true })
  }
}
await utimes(folder, new Date(), new Date())
console.log(folder)
