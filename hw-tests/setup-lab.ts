import { readdir, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { LabError } from './harness/lab-error.ts'
import { quarantineText, readHealth } from './harness/quarantine.ts'
import { labErrorFile, runFolder } from './harness/report.ts'
import { chooseStore, hold, waitMs } from './lease/hold.ts'
import { lockFolder } from './lease/store.ts'
import { allPlaces, choosePlace, missingTools } from './places/index.ts'
import { publishReports } from './report/reporter.ts'

/** Before the first test: the run's folder is named, and a board is leased for the whole run. */
export async function setup(): Promise<(() => Promise<void>) | undefined> {
  // Named before the workers start, so that all of them write into one folder.
  await dropOldRuns(dirname(runFolder(process.cwd(), process.env)))
  const place = choosePlace(process.env['HIL_PLACE'], await allPlaces(process.env))
  if (place.kind !== 'board' || missingTools(place.tools, process.env['PATH'] ?? '').length > 0) return undefined
  // The tests say that it is quarantined; nobody needs to wait for it.
  if (quarantineText(place.name, await readHealth(lockFolder(process.env), place.name)) !== undefined) return undefined
  const folder = runFolder(process.cwd(), process.env)
  const began = new Date().toISOString()
  const lease = await hold(chooseStore(process.env), place.name, {
    waitMs: waitMs(process.env),
    say: (line) => console.log(line),
  }).catch(async (error: unknown) => {
    if (error instanceof LabError) {
      await writeFile(labErrorFile(folder), `${error.message}\n`)
      const run = { id: basename(folder), place: place.name, began, ms: 0, stray: [error.message], outcomes: [] }
      await publishReports(folder, run)
    }
    throw error
  })
  process.env['HIL_HELD'] = lease.token
  return () => lease.release()
}

const KEPT_RUNS = 20

async function dropOldRuns(folder: string): Promise<void> {
  // Their names sort by time; what else lies there is not ours.
  const runs = (await readdir(folder)).filter((name) => /^\d{8}-\d{6}-\d+$/.test(name)).sort()
  for (const name of runs.slice(0, -KEPT_RUNS)) await rm(join(folder, name), { recursive: true, force: true })
}
