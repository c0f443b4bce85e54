import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { isDeepStrictEqual, promisify } from 'node:util'
import { openKit } from '../harness/kit.ts'
import { LabError } from '../harness/lab-error.ts'
import { quarantineText, readHealth, writeHealth } from '../harness/quarantine.ts'
import { campaign } from '../harness/random.ts'
import { labErrorFile, runFolder } from '../harness/report.ts'
import { savedState } from '../harness/warm.ts'
import { chooseStore, hold, TTL_MS } from '../lease/hold.ts'
import { leaseText } from '../lease/lease.ts'
import { startLeaseServer } from '../lease/server.ts'
import { localStore, lockFolder } from '../lease/store.ts'
import { testsAtOnce } from '../places/at-once.ts'
import { allPlaces, choosePlace, choosePlaceName } from '../places/index.ts'
import { mergeRuns, readOutcomes } from '../report/merge.ts'
import { exitCode, tally } from '../report/outcome.ts'
import { publishReports } from '../report/reporter.ts'
import { converse } from './console.ts'
import { diagnose, examine } from './doctor.ts'
import { openPatient } from './patient.ts'
import { positionals, readRepeat, seriesText } from './repeat.ts'
import { goOn, readPlan, type SeriesPlan } from './series.ts'

// npm run hil -- …: runs the suites, or one of the commands below.

const USAGE = `usage: npm run hil                          every suite on HIL_PLACE (an emulated PC unless told)
       npm run hil -- [run] VITEST-ARGUMENTS  some of them, as in: npm run hil -- hw-tests/suites/install
       npm run hil -- prepare [PLACE]         the test kit and the saved device, made ahead of a run
       npm run hil -- repeat N [--folder FOLDER] [--for SECONDS] FILES… VITEST-OPTIONS…
                                              N times, each with a seed of its own (first: HIL_SEED): which fail now and then;
                                              with a folder that was begun, it goes on there
       npm run hil -- merge RUN RUN…          one report of runs (folders in out/hil) that were parts of one
       npm run hil -- places                  what there is, and who has it
       npm run hil -- console PLACE           its console at this terminal
       npm run hil -- doctor PLACE            wiring, power, console, boot; lifts a quarantine when all is well
       npm run hil -- release PLACE           takes a lease away from a run that hangs
       npm run hil -- lease-server [PORT] [ADDRESS]   leases for a bench that several machines share
--short, in a run or with repeat: what \`npm test\` runs of the suites, without the long ones
exit codes: 0 good, 1 a test failed, 2 usage, 3 the lab is broken and no test failed, 4 runs are left for the next call`

const root = resolve(import.meta.dirname, '..', '..')
const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs')
const LAB_BROKEN = 3
const RUNS_LEFT = 4
const DOCTOR = { silenceMs: 2_000, bootMs: 300_000 }

async function main(args: readonly string[]): Promise<number> {
  const [verb, name, more] = args
  switch (verb) {
    case 'prepare':
      return prepare(name)
    case 'places':
      return places()
    case 'console':
      return console_(name)
    case 'doctor':
      return doctor(name)
    case 'release':
      return release(name)
    case 'lease-server':
      return leaseServer(Number(name ?? 7420), more ?? '127.0.0.1')
    case 'help':
    case '--help':
      console.log(USAGE)
      return 0
    case 'run':
      return run(args.slice(1))
    case 'repeat':
      return repeat(args.slice(1))
    case 'merge':
      return merge(args.slice(1))
    default:
      return run(args)
  }
}

/** The suites. A run in which only the lab failed ends with another code than one that found something. */
async function run(args: readonly string[]): Promise<number> {
  // What is wrong with HIL_WORKERS is said here in a sentence; vitest would say it with its own stack.
  testsAtOnce(process.env)
  const folder = runFolder(root, process.env)
  const { code, outcomes } = await suites(folder, withoutShort(args), longOnes(isShort(args)))
  return exitCode(code === 0, outcomes, existsSync(labErrorFile(folder)))
}

const isShort = (args: readonly string[]) => args.includes('--short')
const withoutShort = (args: readonly string[]) => args.filter((word) => word !== '--short')
/** Everything, the long ones too, unless told; `npm test` runs the short ones only. */
const longOnes = (short: boolean) => ({ HIL_LONG: short ? undefined : (process.env['HIL_LONG'] ?? '1') })

async function merge(folders: readonly string[]): Promise<number> {
  if (folders.length === 0) {
    console.error('hil: which runs?')
    return 2
  }
  const into = runFolder(root, process.env)
  const merged = await mergeRuns(folders, into)
  await publishReports(into, merged)
  const { passed, failed, lab } = tally(merged.outcomes)
  return exitCode(passed > 0 && failed + lab + merged.stray.length === 0, merged.outcomes)
}

/** The suites once, into this folder. A code that is undefined: they were killed. */
async function suites(folder: string, args: readonly string[], more: NodeJS.ProcessEnv) {
  const env = { ...process.env, ...more, HIL_RUN: folder }
  const child = spawn(process.execPath, [vitest, 'run', '--project', 'hw', ...args], {
    cwd: root,
    stdio: 'inherit',
    env,
  })
  // Who ends this program ends its tests too, and what had ended by then stays.
  let stopped = false
  const stop = () => {
    stopped = true
    child.kill('SIGTERM')
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, stop)
  const code = await new Promise<number | undefined>((done, reject) => {
    child.on('error', reject)
    child.on('close', (status) => done(stopped ? undefined : (status ?? undefined)))
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, stop)
  return { code, outcomes: await readOutcomes(folder).catch(() => []) }
}

/** The files that a run of these arguments would run. */
async function filesOf(args: readonly string[], more: NodeJS.ProcessEnv): Promise<readonly string[]> {
  const scratch = await mkdtemp(join(tmpdir(), 'bistable-hil-'))
  try {
    const list = join(scratch, 'files.json')
    const options = { cwd: root, env: { ...process.env, ...more } }
    const words = [vitest, 'list', '--project', 'hw', '--filesOnly', `--json=${list}`, ...args]
    await promisify(execFile)(process.execPath, words, options)
    const found = JSON.parse(await readFile(list, 'utf8')) as readonly { readonly file: string }[]
    return found.map(({ file }) => relative(root, file)).sort()
  } finally {
    await rm(scratch, { recursive: true })
  }
}

async function repeat(args: readonly string[]): Promise<number> {
  const { times, folder: named, seconds, short, rest } = readRepeat(args)
  if (times === undefined) {
    console.error('hil: how many times?')
    return 2
  }
  const workers = testsAtOnce(process.env)
  const began = Date.now()
  const folder = named === undefined ? runFolder(root, process.env) : resolve(named)
  const known = await readPlan(folder)
  const place = choosePlaceName(process.env['HIL_PLACE'])
  const plan: SeriesPlan = {
    place,
    times,
    seed: known?.seed ?? campaign(process.env, began, 0).seed,
    args: rest,
    short,
  }
  if (known !== undefined && !isDeepStrictEqual(known, { ...plan, times: known.times })) {
    const which = [...(known.short ? ['--short'] : []), ...known.args].join(' ')
    console.error(`hil: ${folder} holds other runs, on ${known.place}: ${which}`)
    return 2
  }
  const more = longOnes(short)
  const options = rest.slice(positionals(rest).length)
  const head = await promisify(execFile)('git', ['rev-parse', '--short', 'HEAD'], { cwd: root }).catch(() => undefined)
  // Two at once would run the same tests into it.
  await mkdir(folder, { recursive: true })
  const lease = await hold(localStore(folder), 'this folder')
  const lines = await goOn({
    ...{ folder, plan, files: await filesOf(rest, more), now: Date.now, say: (line) => console.log(line) },
    workers,
    ...(seconds !== undefined && { until: began + 1000 * seconds }),
    ...(head !== undefined && { of: head.stdout.trim() }),
    run: async (files, part, seed) => {
      const { code } = await suites(part, [...files, ...options], { ...more, HIL_SEED: `${seed}` })
      return code
    },
  }).finally(() => lease.release())
  const { good, onlyLab, lines: said } = seriesText(lines)
  for (const line of said) console.log(line)
  const left = times - lines.length
  if (left > 0) console.log(`${left} runs are left: the same command with --folder ${folder} goes on`)
  if (lines.length > 0 && !good) return onlyLab ? LAB_BROKEN : 1
  return left > 0 ? RUNS_LEFT : good ? 0 : 1
}

/** What a run would make first: so that it can be made ahead, and kept in a cache. */
async function prepare(name: string | undefined): Promise<number> {
  const place = choosePlace(name ?? process.env['HIL_PLACE'], await allPlaces(process.env))
  const kit = await openKit(place)
  if (place.kind === 'qemu' && place.savedStates) await savedState(kit, place)
  console.log(kit.folder)
  return 0
}

async function places(): Promise<number> {
  const leases = await chooseStore(process.env).list()
  const chosen = choosePlaceName(process.env['HIL_PLACE'])
  for (const [name, place] of Object.entries(await allPlaces(process.env))) {
    const lease = leases[name]
    const sick = quarantineText(name, await readHealth(lockFolder(process.env), name))
    const kind = place.kind === 'qemu' ? 'emulated' : `board, power by ${place.power.driver}`
    const notes = [lease === undefined ? undefined : leaseText(lease, Date.now()), sick].filter(
      (note) => note !== undefined,
    )
    console.log(`${name === chosen ? '*' : ' '} ${name}  ${[kind, ...notes].join('; ')}`)
  }
  return 0
}

async function console_(name: string | undefined): Promise<number> {
  const place = choosePlace(name, await allPlaces(process.env))
  const lost = new AbortController()
  const patient = await openPatient(place, { say: (line) => console.log(line), onLost: (why) => lost.abort(why) })
  try {
    await converse(patient, { input: process.stdin, output: process.stdout }, lost.signal)
  } finally {
    await patient.close()
  }
  return lost.signal.aborted ? LAB_BROKEN : 0
}

async function doctor(name: string | undefined): Promise<number> {
  const place = choosePlace(name, await allPlaces(process.env))
  console.log(`doctor: ${place.name}; its power goes off and on once`)
  const fail = (why: Error) => {
    console.error(`doctor: ${why.message}`)
    process.exit(LAB_BROKEN)
  }
  const facts = await examine(
    place,
    () => openPatient(place, { say: (line) => console.log(line), onLost: fail }),
    DOCTOR,
  )
  const findings = diagnose(facts)
  for (const { part, ok, text } of findings) console.log(`${ok ? 'ok   ' : 'WRONG'} ${part.padEnd(8)} ${text}`)
  if (findings.some(({ ok }) => !ok)) return LAB_BROKEN
  await writeHealth(lockFolder(process.env), place.name, { strikes: 0 })
  return 0
}

async function release(name: string | undefined): Promise<number> {
  const store = chooseStore(process.env)
  const lease = name === undefined ? undefined : (await store.list())[name]
  if (name === undefined || lease === undefined) {
    console.log(`release: nobody has ${name ?? 'a place without a name'}`)
    return name === undefined ? 2 : 0
  }
  console.log(`release: ${leaseText(lease, Date.now())}; taken away`)
  const token = '0'.repeat(32)
  const wish = { place: name, owner: 'npm run hil -- release', token, ttlMs: TTL_MS, steal: true }
  const taken = await store.acquire(wish)
  // Until its lease would have run out, the run that had it may not know. By the store's clock.
  const left = taken.granted && taken.instead !== undefined ? taken.instead.expires - taken.lease.since : 0
  if (left <= 0) await store.release(name, token)
  else {
    await store.renew(name, token, left)
    console.log(`release: ${name} is free in ${Math.ceil(left / 1000)} s, when that run has noticed`)
  }
  return 0
}

async function leaseServer(port: number, listen: string): Promise<number> {
  const token = process.env['HIL_LEASE_TOKEN']
  const file = process.env['HIL_LEASE_FILE'] ?? join(lockFolder(process.env), 'server-leases.json')
  const server = await startLeaseServer({ file, port, listen, ...(token !== undefined && { token }) })
  console.log(`lease server: http://${listen}:${server.port}, leases in ${file}`)
  await new Promise<void>((done) => {
    process.once('SIGINT', done)
    process.once('SIGTERM', done)
  })
  await server.close()
  return 0
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof LabError)) throw error
  console.error(`hil: ${error.message}`)
  process.exitCode = LAB_BROKEN
}
