import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { test } from 'vitest'
import { chooseStore, type SharedLease, share } from '../lease/hold.ts'
import { lockFolder } from '../lease/store.ts'
import { allPlaces, choosePlace, type Feature, missingTools, type Place } from '../places/index.ts'
import { type Board, openBoard } from './board.ts'
import { isTrouble, type Trouble } from './boot-states.ts'
import { mosquittoProgram, TestBroker } from './broker.ts'
import { copyImage } from './disk.ts'
import { Dut, type DutOptions } from './dut.ts'
import { openKit } from './kit.ts'
import { DutError, LabError } from './lab-error.ts'
import type { Machine } from './machine.ts'
import type { DiskFault } from './qemu.ts'
import { nextHealth, quarantineText, readHealth, writeHealth } from './quarantine.ts'
import { leaveRecord } from './record.ts'
import { failureText, isDone, runFolder, transcriptPath } from './report.ts'
import { TestServer } from './server.ts'
import { Stick } from './stick.ts'
import { arm, armedState, savedState } from './warm.ts'
import './matchers.ts'

export { expect } from 'vitest'
export { seconds } from './matchers.ts'

/**
 * Tests of a device: `hil('what it does', async ({ dut, kit, server }) => …)`.
 *
 * `dut` is a fresh device on a copy of the kit's disk. What else a test wants is said by
 * `hil.override('begin', 'off')`: `running` (default): it is up, from slot a, on release `base`; `off`: powered off, the
 * test turns it on; `armed`: running, with release `next` armed in slot b, or the one that
 * `hil.override('arms', 'unhealthy')` names; `shared`: running, and the tests of a file follow each other on one device, until
 * one fails.
 */

export type Begin = 'running' | 'off' | 'armed' | 'shared'

/** Where vitest runs: the project whose tests these are. */
const root = process.cwd()
const BOOT_MS = 300_000

/** Makes the device of each test. `folder` is the test file's own, removed behind it. */
export interface OwnDevice {
  readonly make?: (bench: OwnBench) => Promise<OwnDut>
}

export interface OwnBench {
  readonly folder: string
  readonly httpPort: number
  /** On a place of `HIL_PLACES`: its power and its console, leased, for `machine`. */
  readonly powerOn?: () => Promise<Machine>
}

export interface OwnDut extends Omit<DutOptions, 'transcript'> {
  /** Ends when the device is where its tests begin, such as after a login. */
  readonly ready?: (dut: Dut) => Promise<void>
}

/** What a call of the system or a program of this machine could not do is nothing that the device did. */
function ofTheLab(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof LabError || error instanceof DutError) return error
  return 'syscall' in error || 'cmd' in error ? new LabError(error.message, { cause: error }) : error
}

/** The device that the tests of a file hand on. */
interface Bench {
  dut: Dut | undefined
  /** False until its start has succeeded: a device that did not start is not handed on. */
  sound: boolean
  folder: string
}

async function noFaults(): Promise<readonly DiskFault[]> {
  return []
}

async function clear(bench: Bench): Promise<void> {
  const { dut } = bench
  bench.dut = undefined
  bench.sound = false
  await dut?.powerCut('power off: the test is over')
}

/** Where a place's lab errors are counted: a board's for everybody on this machine, an emulator's for this run. */
function healthFolder(place: Place): string {
  return place.kind === 'board' ? lockFolder(process.env) : runFolder(root, process.env)
}

/** @throws LabError when the place is quarantined */
async function refuseQuarantined(place: Place): Promise<void> {
  const why = quarantineText(place.name, await readHealth(healthFolder(place), place.name))
  if (why !== undefined) throw new LabError(why)
}

export const hil = test
  .extend('place', { scope: 'worker' }, async () => choosePlace(process.env['HIL_PLACE'], await allPlaces(process.env)))
  .extend('kit', { scope: 'worker' }, ({ place }) => openKit(place))
  .extend('server', { scope: 'file' }, async ({ place }, { onCleanup }) => {
    const server = await TestServer.start(place.serverAddress, ...(place.kind === 'board' ? [place.serverListen] : []))
    onCleanup(() => server.close())
    return server
  })
  // Taken before the first test, by the project's global setup. Where that took none, the board is not touched.
  .extend('lease', { scope: 'worker' }, async ({ place }): Promise<SharedLease | undefined> => {
    const { HIL_HELD: held = '' } = process.env
    return place.kind === 'board' && held !== '' ? share(chooseStore(process.env), place.name, held) : undefined
  })
  .extend('board', { scope: 'file' }, ({ place, lease }, { onCleanup }): Board | undefined => {
    if (place.kind !== 'board' || lease === undefined) return undefined
    const board = openBoard(place.name, place, lease)
    onCleanup(() => board.close())
    return board
  })
  .extend('bench', { scope: 'file' }, async ({ place }, { onCleanup }): Promise<Bench> => {
    const bench: Bench = {
      dut: undefined,
      sound: false,
      folder: await mkdtemp(join(tmpdir(), `bistable-${place.name}-`)),
    }
    onCleanup(async () => {
      await clear(bench)
      await rm(bench.folder, { recursive: true, force: true })
    })
    return bench
  })
  /** A real Mosquitto of the test's own, and a publisher behind it. */
  .extend('broker', async ({ place, bench, skip }, { onCleanup }) => {
    if (mosquittoProgram() === undefined && process.env['CI'] === undefined) skip('not here: mosquitto')
    const broker = await TestBroker.start({
      folder: join(bench.folder, 'broker'),
      socket: brokerSocket(bench),
      host: new URL(place.serverAddress).hostname,
      ...(place.kind === 'board' && { listen: place.serverListen }),
    })
    onCleanup(() => broker.close())
    return broker
  })
  /** A device that is none of bistable's: how to give it power, and when it is up. */
  .extend('device', {} as OwnDevice)
  .extend('begin', 'running' as Begin)
  /** The release that a device which begins `armed` has in slot b. */
  .extend('arms', 'next')
  .extend('needs', [] as readonly Feature[])
  /** What the disk refuses from the test's start; emulated places only ('bad-medium'). */
  .extend('faults', { make: noFaults } as { readonly make: (disk: string) => Promise<readonly DiskFault[]> })
  /** Troubles that the test itself brings about: any other fails it, also one that came while nobody waited. */
  .extend('allow', [] as readonly Trouble[])
  /** More arguments for the emulator, on places that are emulated. */
  .extend('extra', [] as readonly string[])
  .extend(
    'dut',
    async (
      {
        place,
        lease,
        board,
        server,
        device,
        bench,
        begin,
        arms,
        needs,
        allow,
        faults,
        extra,
        task,
        signal,
        skip,
        onTestFailed,
        onTestFinished,
      },
      { onCleanup },
    ) => {
      const missing = missingTools(place.tools, process.env['PATH'] ?? '')
      if (missing.length > 0 && process.env['CI'] === undefined) skip(`not here: ${missing.join(', ')}`)
      const lacking = needs.filter((need) => !place.features.includes(need))
      if (lacking.length > 0) skip(`the place ${place.name} has no ${lacking.join(', ')}`)
      const file = relative(root, task.file.filepath)
      const output = runFolder(root, process.env)
      if (isDone(output, file, task.fullTestName)) skip('it has ended in another part of this run')
      if (missing.length > 0) throw new LabError(`not here: ${missing.join(', ')}`)
      await refuseQuarantined(place)
      if (place.kind === 'board' && lease === undefined)
        throw new LabError(
          `this run has no lease of ${place.name}: is globalSetup 'bistable/hil/setup' in its configuration?`,
        )
      const transcript = join(output, transcriptPath(file, task.name))
      const begun = Date.now()
      await mkdir(dirname(transcript), { recursive: true })
      await rm(transcript, { force: true })
      const kept = begin === 'shared' && bench.sound ? bench.dut : undefined
      if (kept === undefined) await clear(bench)
      const disk = diskOf(bench)
      const power = board && { powerOn: () => board.powerOn() }
      const own = await device.make?.({ folder: bench.folder, httpPort: server.port, ...power })
      const dut = kept ?? new Dut(own ?? dutOptions(place, board, bench, server.port, extra))
      bench.dut = dut
      dut.signal = lease === undefined ? signal : AbortSignal.any([signal, lease.signal])
      dut.logTo(transcript)
      dut.watchFor((event) => isTrouble(event, allow, dut.hadStick))
      onTestFailed(() => {
        const facts = { place: place.name, ...dut.lastWords() }
        const more = failureText({ ...facts, transcript: relative(root, transcript), file, test: task.name })
        for (const error of task.result?.errors ?? []) error.message += `\n${more}`
      })
      onTestFinished(async () => {
        const labError = task.result?.errors?.find(({ name }) => name === 'LabError')?.message
        const folder = healthFolder(place)
        await writeHealth(folder, place.name, nextHealth(await readHealth(folder, place.name), labError, Date.now()))
      })
      // Before the power goes: the record tells a cut of the test's from the end of the test.
      const leave = () =>
        leaveRecord(task.meta, {
          place: place.name,
          transcript: relative(output, transcript),
          state: dut.lastWords().state,
          sessions: dut.sessionsSince(begun),
        })
      onCleanup(async () => {
        dut.signal = undefined
        leave()
        const seen = dut.sessionsSince(begun).flatMap(({ events }) => events)
        const trouble = seen.find((event) => isTrouble(event, allow, dut.hadStick))
        // Callbacks of a failed test come later than this; its result is there.
        const failed = task.result?.state === 'fail' || trouble !== undefined
        if (failed) await dut.account()
        if (failed || begin !== 'shared') await clear(bench)
        if (trouble !== undefined) throw new DutError(`${trouble.kind}, which no test here expects: ${trouble.line}`)
      })
      if (kept !== undefined) return dut
      try {
        if (own === undefined) await start(dut, { place, board, server, disk, begin, arms, faults: faults.make })
        else if (begin !== 'off') await startOwn(dut, own)
      } catch (error) {
        // No clean-up is called for what never began.
        leave()
        await clear(bench).catch(() => {})
        throw ofTheLab(error)
      }
      bench.sound = true
      return dut
    },
  )
  /** What is plugged into the device and pulled; `needs` must have 'stick'. */
  .extend('stick', ({ dut, bench }) => new Stick(dut, bench.folder))

const diskOf = (bench: Bench) => join(bench.folder, 'disk.img')
/** Known before a broker listens on it: the emulator is told of it at its start, and a test may want none. */
const brokerSocket = (bench: Bench) => join(bench.folder, 'broker.socket')

function dutOptions(
  place: Place,
  board: Board | undefined,
  bench: Bench,
  httpPort: number,
  extra: readonly string[],
): DutOptions {
  const disk = diskOf(bench)
  if (place.kind === 'qemu') {
    const { machine: profile, memoryMiB } = place
    return { disk, profile, memoryMiB, httpPort, brokerSocket: brokerSocket(bench), extra }
  }
  if (board === undefined) throw new LabError(`the place ${place.name} is not leased`)
  return {
    disk,
    machine: () => board.powerOn(),
    withMedium: (act) => board.withMedium(act),
    ...(place.login && { login: place.login }),
  }
}

async function startOwn(dut: Dut, { ready }: OwnDut): Promise<void> {
  await dut.powerOn()
  await ready?.(dut)
}

interface Start {
  readonly place: Place
  readonly board: Board | undefined
  readonly server: TestServer
  readonly disk: string
  readonly begin: Begin
  readonly arms: string
  readonly faults: (disk: string) => Promise<readonly DiskFault[]>
}

/** Brings a device to where its test begins. */
async function start(dut: Dut, { place, board, server, disk, begin, arms, faults }: Start): Promise<void> {
  const kit = await openKit(place)
  if (place.kind === 'qemu' && place.savedStates && begin !== 'off') {
    const saved = await (begin === 'armed' ? armedState(kit, place, arms) : savedState(kit, place))
    await copyImage(saved.disk, disk)
    return dut.powerOn({ restore: saved.memory, faults: await faults(disk) })
  }
  if (board === undefined) await copyImage(kit.disk, disk)
  else await board.provision(kit.disk)
  if (begin === 'off') return
  await dut.powerOn()
  await dut.next(['running'], { timeoutMs: BOOT_MS })
  if (begin === 'armed') await arm(dut, kit, server, arms)
}
