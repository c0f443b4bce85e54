import { openKit } from './harness/kit.ts'
import { savedState } from './harness/warm.ts'
import { choosePlace, missingTools } from './places/index.ts'

/**
 * Before the first test: the kit and the saved device are made once, so that no test is charged for them and files that
 * run side by side find them. The workers get the kit's folder by its environment variable.
 */
export async function setup(): Promise<void> {
  const place = choosePlace(process.env['HIL_PLACE'])
  // The tests name what is missing.
  if (missingTools(place.tools, process.env['PATH'] ?? '').length > 0) return
  const kit = await openKit()
  process.env['HIL_KIT'] = kit.folder
  if (place.savedStates) await savedState(kit, place)
}
