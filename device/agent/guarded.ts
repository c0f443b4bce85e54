import { type ErrorFamily, isBistableError } from '../../base/errors.ts'
import { clip } from '../records/record.ts'
import { addOutcome } from './body.ts'
import { type Core, failureFrom } from './core.ts'

/** Work whose failure must not end the agent, and how it gets into the history. */

/** Runs one piece of work; its failure is said, recorded once, and returned, and the loop goes on. */
export async function guarded(
  core: Core,
  what: string,
  work: () => Promise<unknown>,
): Promise<{ readonly family: ErrorFamily } | undefined> {
  try {
    await work()
    return undefined
  } catch (error) {
    const { code, message } = failureFrom(error)
    if (code === 'AGENT_CANCELLED' || code === 'AGENT_BUSY') return undefined
    core.say(`bistable: ${code}: ${message}`, 'error')
    try {
      const last = core.body.outcomes.at(-1)
      if (last?.code !== code || last.message !== clip(message)) await noteFailure(core, what, code, message)
    } catch (second) {
      core.say(`bistable: the record cannot be written: ${failureFrom(second).message}`, 'error')
    }
    return { family: isBistableError(error) ? error.family : 'internal' }
  }
}

export async function noteFailure(core: Core, what: string, code: string, message: string): Promise<void> {
  if (what === 'check') return noteCheck(core, false, code, message)
  const at = core.now().wall
  await core.update((body) => addOutcome(body, { at, what, ok: false, code, message }))
}

/** A check's outcome goes into the history when it says something new. */
export async function noteCheck(core: Core, ok: boolean, code: string | undefined, message: string): Promise<void> {
  const last = core.body.outcomes.findLast((outcome) => outcome.what === 'check')
  if (last?.ok === ok && last.code === code && last.message === clip(message)) return
  const at = core.now().wall
  await core.update((body) =>
    addOutcome(body, { at, what: 'check', ok, message, ...(code === undefined ? {} : { code }) }),
  )
}
