import { exact } from '../doors/exact.ts'
import type { InstallPlan } from '../install/plan.ts'
import { assignedNow } from './assignment.ts'
import type { Core } from './core.ts'
import { heard, mover } from './heard.ts'
import { offerHints } from './hints-offer.ts'
import { openPatch, spareFor } from './patch-offer.ts'
import { checkAllowed, type InstallOptions } from './work.ts'

/**
 * What installing from here would fetch from where. Reads the head of the bundle and the slots; changes nothing, and keeps
 * nothing of what the bundle says.
 * @throws what `installFrom` would throw before its first write
 */
export async function planFrom(
  core: Core,
  from: string,
  { force, onProgress, maxBytes, reuse, patch: place }: InstallOptions,
  signal: AbortSignal,
): Promise<InstallPlan> {
  const { engine } = core.ports
  const source = heard(exact(await engine.open(from, signal)), mover(core))
  const patch = await openPatch(core, place, signal)
  const hints = offerHints(core, from, signal)
  try {
    const head = await engine.head(source, core.trusted, signal, spareFor(core, from, patch, hints))
    const assigned = await assignedNow(core)
    checkAllowed(core, head, { force }, assigned?.release === head.digest && assigned.allowDowngrade)
    return await engine.plan({
      source,
      head,
      running: core.line.slot,
      signal,
      hints,
      onProgress: (progress) => {
        core.activity.beat({ ...progress })
        onProgress(progress)
      },
      ...(maxBytes === undefined ? {} : { maxBytes }),
      ...(reuse === undefined ? {} : { reuse }),
      ...(patch === undefined ? {} : { patch }),
    })
  } finally {
    await hints?.close()
    await patch?.close()
    await source.close()
  }
}
