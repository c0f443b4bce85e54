import { rmSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { benchBoot } from './boot.ts'
import { benchDelta } from './delta/campaign.ts'
import { benchEtc } from './etc.ts'
import { benchInstall } from './install.ts'
import { describeMachine, load } from './machine.ts'
import { benchPublish } from './publish.ts'
import { benchPublisherMemory } from './publisher-memory.ts'
import { type Report, reportText } from './report.ts'
import { benchSquashfs } from './squashfs.ts'
import { openWorkshop, type Workshop } from './workshop.ts'

// npm run bench [-- squashfs|publish|install|boot|etc|delta|publisher-memory …] [-- --runs N --fast --level N --sizes 64,256,1024 --size-runs N --json FILE --keep]
// Figures for people: nothing here fails because something was slow.

const benches: Readonly<Record<string, (workshop: Workshop, runs: number) => Promise<Report>>> = {
  squashfs: benchSquashfs,
  delta: (workshop) =>
    benchDelta(workshop, {
      folder: steps,
      seconds: Number(values.seconds ?? 1e9),
      only: values.pairs?.split(','),
      again: values.again?.split(',') ?? [],
    }),
  publish: benchPublish,
  'publisher-memory': (workshop) => benchPublisherMemory(workshop, numbers(values.gib)),
  install: (workshop, runs) => benchInstall(workshop, runs, sizes, Number(values['size-runs'])),
  boot: benchBoot,
  etc: benchEtc,
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: 'string' },
    level: { type: 'string', default: '15' },
    sizes: { type: 'string', default: '64,256,1024' },
    // Of install: runs for each size.
    'size-runs': { type: 'string', default: '1' },
    json: { type: 'string', default: join('out', 'bench.json') },
    fast: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
    // Of publisher-memory: sizes.
    gib: { type: 'string', default: '1,8' },
    // Of delta, whose steps are kept: begin no step later than this, these pairs only, these steps anew.
    seconds: { type: 'string' },
    pairs: { type: 'string' },
    again: { type: 'string' },
    steps: { type: 'string', default: join('out', 'delta') },
  },
})
const numbers = (list: string): number[] =>
  list
    .split(',')
    .filter((text) => text !== '')
    .map(Number)
const sizes = numbers(values.sizes)
const usual: Readonly<Record<string, number>> = { squashfs: 3, publish: 3, install: 7, boot: 7, etc: 7 }
// Patches take an hour, large images the disk: only when asked for.
const ASKED = ['delta', 'publisher-memory']
const wanted = positionals.length === 0 ? Object.keys(benches).filter((name) => !ASKED.includes(name)) : positionals
for (const name of wanted) if (benches[name] === undefined) throw new Error(`there is no bench '${name}'`)

const steps = resolve(values.steps)
const folder = await mkdtemp(join(tmpdir(), 'bistable-bench-'))
const say = (line: string): void => console.error(`bench: ${line}`)
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => {
    rmSync(folder, { recursive: true, force: true })
    process.exit(130)
  })
try {
  const machine = await describeMachine()
  const flavour = values.fast ? 'fast' : 'debian'
  const workshop = await openWorkshop({
    ...{ folder, flavour, level: Number(values.level), say },
    // Steps that are kept are signed by keys that are kept.
    ...(wanted.includes('delta') ? { keys: join(steps, 'keys') } : {}),
  })
  const { cores, memoryGiB, system, kernel, node, tools } = machine
  console.log(`${cores} cores, ${memoryGiB} GiB, ${system}, Linux ${kernel}, Node.js ${node}`)
  const versions = Object.entries(tools).map(([name, version]) => `${name} ${version}`)
  console.log(`${versions.join(', ')}; load of the last minute ${machine.load}\n`)
  const file = resolve(values.json)
  await mkdir(dirname(file), { recursive: true })
  const reports: (Report & { readonly loadAfter: number })[] = []
  for (const [name, run] of Object.entries(benches)) {
    if (!wanted.includes(name)) continue
    const report = await run(workshop, values.runs === undefined ? (usual[name] ?? 3) : Number(values.runs))
    reports.push({ ...report, loadAfter: load() })
    console.log(`${reportText(report)}\n  load of the last minute ${load()}\n`)
    // After each: a later one that cannot run takes nothing away.
    await writeFile(file, `${JSON.stringify({ machine, flavour, level: values.level, reports }, null, 2)}\n`)
  }
  console.log(`bench: ok; figures in ${values.json}`)
} finally {
  if (values.keep) say(`kept: ${folder}`)
  else await rm(folder, { recursive: true, force: true })
}
