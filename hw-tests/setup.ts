import { readdir, rm } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { openKit } from './harness/kit.ts'
import { runFolder } from './harness/report.ts'
import { savedState } from './harness/warm.ts'
import { choosePlace, missingTools } from './places/index.ts'

/**
 * Before the first test: the kit and the saved device are made once, so that no test is charged for them and files that
 * run side by side find them. The workers get the kit's folder by its environment variable.
 */
export async function setup(): Promise<void> {
  // Named before the workers start, so that all of them write into one folder.
  await dropOldRuns(dirname(runFolder(resolve(import.meta.dirname, '..'), process.env)))
  const place = choosePlace(process.env['HIL_PLACE'])
  // The tests name what is missing.
  if (missingTools(place.tools, process.env['PATH'] ?? '').length > 0) return
  const kit = await openKit()
  process.env['HIL_KIT'] = kit.folder
  if (place.savedStates) await savedState(kit, place)
}

const KEPT_RUNS = 20

async function dropOldRuns(folder: string): Promise<void> {
  // Their names sort by time; what else lies there is not ours.
  const runs = (await readdir(folder)).filter((name) => /^\d{8}-\d{6}-\d+$/.test(name)).sort()
  for (const name of runs.slice(0, -KEPT_RUNS)) await rm(join(folder, name), { recursive: true, force: true })
}
