import { openKit } from './harness/kit.ts'
import { savedState } from './harness/warm.ts'
import { allPlaces, choosePlace, missingTools } from './places/index.ts'
import { setup as setupLab } from './setup-lab.ts'

/**
 * Before the first test: besides the lab, the kit and the saved device, made once, so that no test is charged for them and
 * files that run side by side find them. The workers learn of them by the environment.
 */
export async function setup(): Promise<(() => Promise<void>) | undefined> {
  const teardown = await setupLab()
  const place = choosePlace(process.env['HIL_PLACE'], await allPlaces(process.env))
  // The tests name what is missing.
  if (missingTools(place.tools, process.env['PATH'] ?? '').length > 0) return teardown
  const kit = await openKit(place)
  process.env['HIL_KIT'] = kit.folder
  if (place.kind === 'qemu' && place.savedStates) await savedState(kit, place)
  return teardown
}
