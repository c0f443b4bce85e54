import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { Dut } from '../hw-tests/harness/dut.ts'
import { choosePlace, missingTools } from '../hw-tests/places/index.ts'
import { type Flavour, imageFactory, type ReleaseSpec } from './images.ts'
import { openWorkshop, serveSite } from './publisher.ts'
import { type Ended, Story } from './story.ts'
import { TARGETS } from './targets.ts'
import { Timeline, table } from './timeline.ts'

// npm run demo [-- --fast] [-- --keep] [-- --place NAME]: the main job, end to end, on a virtual device.

const { values } = parseArgs({
  options: {
    fast: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
    place: { type: 'string' },
  },
})
const place = choosePlace(values.place)
const lacking = missingTools(place.tools, process.env['PATH'] ?? '')
if (lacking.length > 0) throw new Error(`not here: ${lacking.join(', ')}; sh scripts/setup.sh uboot installs it`)
const target = TARGETS[place.kit === 'arm64' ? 'arm64' : 'x86']
const flavour: Flavour = values.fast ? 'fast' : 'debian'
const timeline = new Timeline()
const root = resolve(import.meta.dirname, '..')
const work = await mkdtemp(join(tmpdir(), 'bistable-demo-'))
const transcript = join(work, 'console.log')
const sizes =
  flavour === 'fast' ? { rootfs: '192M', boot: '48M', data: '64M' } : { rootfs: '512M', boot: '64M', data: '256M' }
/** Work of the publisher while the device works. Its failure is told where its result is wanted. */
function meanwhile<T>(work: Promise<T>): Promise<T> {
  work.catch(() => undefined)
  return work
}
let dut: Dut | undefined
let closeServer: (() => Promise<void>) | undefined
const ended: Ended[] = []

try {
  timeline.chapter('1. two operating systems as OCI images')
  const system = flavour === 'fast' ? 'busybox' : 'Debian 12 with systemd'
  timeline.say('demo', `working in ${work}; place: ${place.name}; system: ${system}`)
  await promisify(execFile)(process.execPath, [join(root, 'scripts', 'build.mjs')])
  timeline.say('demo', 'command line and device agent bundled into one file each')
  // A patch takes the publisher as long as the small system's whole install.
  const effort = flavour === 'fast' ? { level: 3, deltas: 0 } : { level: 9, deltas: 2 }
  // Keys are stretched on one processor while the root file system is packed on the other.
  const opening = meanwhile(openWorkshop(work, timeline, effort))
  const images = await imageFactory({
    flavour,
    target,
    work,
    rootStatement: meanwhile(opening.then(({ rootStatement }) => rootStatement)),
    say: (line) => timeline.say('publisher', line),
  })
  const workshop = await opening
  const bundles: string[] = []
  const release = async (spec: Omit<ReleaseSpec, 'tag'>): Promise<string> => {
    const counter = Number(spec.version.split('.')[0])
    const bundle = await workshop.makeBundle(await images.release({ ...spec, tag: `r${counter}` }), {
      version: spec.version,
      counter,
    })
    bundles.push(bundle)
    return bundle
  }

  timeline.chapter('2. keys, release 1, a disk image, first boot')
  const bundle1 = await release({ version: '1.0.0', app: 'app' })
  const disk = join(work, 'disk.img')
  await workshop.makeDisk(bundle1, disk, sizes, (await target.disk[place.bootloader ?? 'grub']?.()) ?? [])
  await mkdir(workshop.site, { recursive: true })
  const server = await serveSite(workshop.site)
  closeServer = () => server.close()
  timeline.say('server', `plain directory served on 127.0.0.1:${server.port}; the device sees http://10.0.2.100/`)
  const memoryMiB = flavour === 'fast' ? 512 : 1024
  dut = new Dut({ disk, profile: place.machine, httpPort: server.port, transcript, memoryMiB })
  const story = new Story(dut, timeline, flavour === 'fast' ? 240_000 : 420_000)
  const bundle2 = meanwhile(release({ version: '2.0.0', app: 'app', newPackages: true }))
  await story.firstBoot()

  timeline.chapter('3. release 2: found, installed, tried, committed')
  await workshop.publish(await bundle2)
  const bundle3 = meanwhile(release({ version: '3.0.0', app: 'app-broken', newPackages: true }))
  ended.push(await story.commits({ release: '1.2', version: '2.0.0', slot: 'b' }))

  timeline.chapter('4. release 3: its application fails its health check')
  await workshop.publish(await bundle3)
  const bundle4 = meanwhile(release({ version: '4.0.0', app: 'app', newPackages: true, brokenInit: true }))
  ended.push(await story.fallsBack({ release: '1.3', slot: 'a', home: 'b', homeRelease: '1.2', how: 'health' }))

  timeline.chapter('5. release 4: the kernel panics before user space')
  await workshop.publish(await bundle4)
  ended.push(await story.fallsBack({ release: '1.4', slot: 'a', home: 'b', homeRelease: '1.2', how: 'panic' }))
  await story.lastLook()

  timeline.chapter('6. what happened')
  const inMiB = (bytes: number): string => `${(bytes / (1024 * 1024)).toFixed(1)} MiB`
  const rows = []
  for (const [n, r] of ended.entries()) {
    const { size } = await stat(bundles[n + 1] ?? '')
    rows.push([
      r.release,
      r.slot,
      String(r.tries),
      r.outcome,
      `${r.seconds.toFixed(1)} s`,
      inMiB(r.fetched),
      inMiB(size),
    ])
  }
  console.log(table(['release', 'slot', 'tries', 'outcome', 'reboot to outcome', 'bytes fetched', 'of bundle'], rows))
  console.log(`\ndemo: ok (${timeline.seconds().toFixed(0)} s)`)
} catch (error) {
  process.exitCode = 1
  console.error(`\ndemo: FAILED: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
  try {
    console.error(`--- the last console lines\n${dut?.console.tail(60) ?? '(the device was never on)'}`)
  } catch {}
  const kept = join(root, 'out', 'demo-console.log')
  await mkdir(join(root, 'out'), { recursive: true })
  await promisify(execFile)('cp', [transcript, kept]).catch(() => writeFile(kept, ''))
  console.error(`--- the whole console: ${kept}`)
} finally {
  await dut?.powerCut().catch(() => {})
  await closeServer?.()
  if (values.keep) console.log(`kept: ${work}`)
  else await rm(work, { recursive: true, force: true, maxRetries: 5 })
}
