import { isBistableError } from '../../base/errors.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { imageNeeds, type StateNeeds } from '../../bundle/state.ts'
import { SYSTEM_MAX_BYTES, SYSTEM_PATH } from '../../bundle/system.ts'
import type { ReleaseStatement } from '../../bundle/types.ts'
import { stateErrors } from '../state/errors.ts'
import { judgeArm } from '../state/judge.ts'
import type { StateOfDevice } from '../state/state.ts'
import type { Slots } from './engine-over.ts'
import { closeAll, type Opened, openSlotImage, readImageFile } from './slot-image.ts'

/** Whether the release in a verified slot can live with the data of this device. */

/** @throws STATE_*; nothing has been armed */
export async function checkState(
  state: StateOfDevice,
  slots: Slots,
  running: Slot,
  statement: ReleaseStatement,
  root: string,
): Promise<void> {
  const facts = await state.facts()
  if (facts === undefined) return
  const needs = await needsOf(slots, otherSlot(running), statement)
  const migrates = needs.schema > facts.schema && facts.filesystem !== 'btrfs'
  const copied = migrates ? await state.sizeOf(root, needs.paths) : 0
  const failure = judgeArm(facts, needs, copied, await state.free())
  if (failure !== undefined) throw failure
}

async function needsOf(slots: Slots, slot: Slot, statement: ReleaseStatement): Promise<StateNeeds> {
  const opened: Opened = []
  try {
    const image = await openSlotImage(slots, slot, statement, opened)
    const bytes = await readImageFile(image, SYSTEM_PATH, SYSTEM_MAX_BYTES)
    if (bytes === undefined) throw stateErrors.STATE_UNREADABLE(`the image has no ${SYSTEM_PATH}`)
    const needs = imageNeeds(JSON.parse(Buffer.from(bytes).toString('utf8')))
    if (needs === undefined)
      throw stateErrors.STATE_UNREADABLE(`writable, mounts or state of ${SYSTEM_PATH} is not understood`)
    const missing: string[] = []
    for (const path of needs.folders) if ((await image.lookup(path))?.type !== 'dir') missing.push(path)
    for (const path of needs.programs) if ((await image.lookup(path)) === undefined) missing.push(path)
    if (missing.length > 0)
      throw stateErrors.STATE_SEED_MISSING(`declared, but not in the image: ${missing.join(', ')}`, {
        details: { missing },
      })
    return needs.state
  } catch (cause) {
    if (isBistableError(cause)) throw cause
    throw stateErrors.STATE_UNREADABLE(`${SYSTEM_PATH}: ${(cause as Error).message}`, { cause })
  } finally {
    await closeAll(opened)
  }
}
