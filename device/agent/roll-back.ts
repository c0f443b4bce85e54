import { rollBack } from '../../bootloader/machine.ts'
import { otherSlot } from '../../bootloader/state.ts'
import { compareNumbers, formatNumber } from '../../bundle/fields.ts'
import { deviceErrors } from '../errors.ts'
import type { Job } from '../records/record.ts'
import { type Core, failureFrom } from './core.ts'
import { after, before } from './hooks.ts'
import { triesOf } from './work.ts'

/** What a person may ask when a release that was committed turns out bad: the way back. */

export interface RollBackOptions {
  /** Also to a release that cannot read the data. */
  readonly force?: boolean
  /** And to the state as that release left it. */
  readonly withState?: boolean
}

/** Arms the other slot when it holds what was once committed. It is tried like any release, so it cannot strand. */
export async function rollBackNow(core: Core, options: RollBackOptions = {}): Promise<string> {
  const { ports, body } = core
  const slot = otherSlot(core.line.slot)
  const boot = await core.bootState()
  const facts = body.slots[slot] ?? (await ports.engine.storedRelease(slot))?.facts
  if (body.state.name === 'trying') throw deviceErrors.AGENT_STATE('a try is running; it ends by itself')
  // Before the spare: the boot state does not call it one any more once the floor has passed it.
  if (facts?.committed === true && compareNumbers(facts.number, body.securityFloor) < 0) {
    throw deviceErrors.ROLLBACK_FLOOR(
      `slot ${slot} holds ${formatNumber(facts.number)}, the security floor is ${formatNumber(body.securityFloor)}`,
    )
  }
  if (!boot.spare || boot.primary !== core.line.slot || facts === undefined) {
    throw deviceErrors.ROLLBACK_NO_SPARE(`slot ${slot} holds nothing that was committed here`)
  }
  const { digest, number, version } = facts
  const started = core.now().wall
  const job: Job = { kind: 'rollback', slot, digest, number, version, source: 'rollback', forced: false, started }
  const { force = false, withState = false } = options
  const root = (await ports.engine.storedRelease(slot))?.statement.images.find(({ name }) => name === 'rootfs')?.root
  const names = { release: formatNumber(number), root: root ?? '-', running: formatNumber(core.line.release) }
  await ports.state?.allowRollBack({ slot, ...names, force, withState })
  await before(core, 'rollback', job)
  await core.apply({ kind: 'begin-rollback', job })
  try {
    await ports.boot.write(rollBack(boot, await triesOf(ports.boot)))
  } catch (error) {
    await core.apply({ kind: 'failed', failure: failureFrom(error), lasting: false })
    throw error
  }
  await core.apply({ kind: 'armed' })
  await after(core, 'rollback', job)
  return `release ${formatNumber(number)} (${version}) in slot ${slot} is armed; the next boot tries it`
}
