import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { test } from 'vitest'
import { choosePlace, missingTools } from '../places/index.ts'
import { copyImage } from './disk.ts'
import { Dut } from './dut.ts'
import { openKit } from './kit.ts'
import { leaveRecord } from './record.ts'
import { failureText, runFolder, transcriptPath } from './report.ts'
import { TestServer } from './server.ts'
import { savedState } from './warm.ts'
import './matchers.ts'

export { expect } from 'vitest'
export { seconds } from './matchers.ts'

/**
 * Tests of a device: `hil('what it does', async ({ dut, kit, server }) => …)`.
 *
 * `dut` is a fresh device on a copy of the kit's disk. What else a test wants is said by
 * `hil.override('begin', 'off')`: `running` (default): it is up, from slot a, on release `base`; `off`: powered off, the
 * test turns it on; `shared`: running, and the tests of a file follow each other on one device, until one fails.
 */

export type Begin = 'running' | 'off' | 'shared'

const root = resolve(import.meta.dirname, '..', '..')
const BOOT_MS = 300_000

/** The device that the tests of a file hand on. */
interface Bench {
  dut: Dut | undefined
  /** False until its start has succeeded: a device that did not start is not handed on. */
  sound: boolean
  folder: string
}

async function clear(bench: Bench): Promise<void> {
  const { dut } = bench
  bench.dut = undefined
  bench.sound = false
  await dut?.powerCut()
}

export const hil = test
  .extend('place', { scope: 'worker' }, () => choosePlace(process.env['HIL_PLACE']))
  .extend('kit', { scope: 'worker' }, () => openKit())
  .extend('server', { scope: 'file' }, async ({ place }, { onCleanup }) => {
    const server = await TestServer.start(place.serverAddress)
    onCleanup(() => server.close())
    return server
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
  .extend('begin', 'running' as Begin)
  .extend('dut', async ({ place, kit, server, bench, begin, task, signal, skip, onTestFailed }, { onCleanup }) => {
    const missing = missingTools(place.tools, process.env['PATH'] ?? '')
    if (missing.length > 0 && process.env['CI'] === undefined) skip(`not here: ${missing.join(', ')}`)
    const file = relative(root, task.file.filepath)
    const output = runFolder(root, process.env)
    const transcript = join(output, transcriptPath(file, task.name))
    const begun = Date.now()
    await mkdir(dirname(transcript), { recursive: true })
    await rm(transcript, { force: true })
    const kept = begin === 'shared' && bench.sound ? bench.dut : undefined
    if (kept === undefined) await clear(bench)
    const disk = join(bench.folder, 'disk.img')
    const dut = kept ?? new Dut({ disk, memoryMiB: place.memoryMiB, httpPort: server.port })
    bench.dut = dut
    dut.signal = signal
    dut.logTo(transcript)
    let failed = false
    onTestFailed(() => {
      failed = true
      const facts = { place: place.name, ...dut.lastWords() }
      const more = failureText({ ...facts, transcript: relative(root, transcript), file, test: task.name })
      for (const error of task.result?.errors ?? []) error.message += `\n${more}`
    })
    onCleanup(async () => {
      dut.signal = undefined
      leaveRecord(task.meta, {
        place: place.name,
        transcript: relative(output, transcript),
        state: dut.lastWords().state,
        sessions: dut.sessionsSince(begun),
      })
      if (failed || begin !== 'shared') await clear(bench)
    })
    if (kept !== undefined) return dut
    if (begin === 'off') {
      await copyImage(kit.disk, disk)
    } else if (place.savedStates) {
      const saved = await savedState(kit, place)
      await copyImage(saved.disk, disk)
      await dut.powerOn({ restore: saved.memory })
    } else {
      await copyImage(kit.disk, disk)
      await dut.powerOn()
      await dut.next(['running'], { timeoutMs: BOOT_MS })
    }
    bench.sound = true
    return dut
  })
