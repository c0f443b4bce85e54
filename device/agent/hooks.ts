import { formatNumber } from '../../bundle/fields.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import { deviceErrors } from '../errors.ts'
import { clip } from '../records/record.ts'
import { addOutcome } from './body.ts'
import type { Core } from './core.ts'
import { lasting } from './heard.ts'

/**
 * Executables that the image or the device brings, run before and after each step. Before: the first that does not end
 * with 0 refuses the step. After: a failure is told and changes nothing. All of one step share one time limit.
 */

export type HookStep = 'check' | 'download' | 'install' | 'arm' | 'reboot' | 'commit' | 'rollback'
export const HOOK_STEPS: readonly HookStep[] = ['check', 'download', 'install', 'arm', 'reboot', 'commit', 'rollback']

export const HOOK_FOLDERS = ['/usr/lib/bistable/hooks.d', '/etc/bistable/hooks.d'] as const
/** More in one folder are a mistake. */
const MAX_HOOKS = 32

export interface HookFacts {
  readonly number?: ReleaseNumber | undefined
  readonly version?: string | undefined
  readonly slot?: string | undefined
  /** After a step that failed: its code. */
  readonly code?: string | undefined
}

/** @throws HOOK_REFUSED, HOOK_TIMEOUT; the signal's reason when aborted */
export async function before(core: Core, step: HookStep, facts: HookFacts, signal?: AbortSignal): Promise<void> {
  const failed = await runHooks(core, `pre-${step}`, step, facts, signal)
  signal?.throwIfAborted()
  if (failed === undefined) return
  const make = failed.late ? deviceErrors.HOOK_TIMEOUT : deviceErrors.HOOK_REFUSED
  throw make(`${step}: ${failed.message}`)
}

/** Tells those who wait for it that a step was taken, or that it failed. Never rejects. */
export async function after(core: Core, step: HookStep, facts: HookFacts): Promise<void> {
  const failed = await runHooks(core, `post-${step}`, step, facts).catch((error: unknown) => ({
    message: String(error),
  }))
  if (failed === undefined) return
  const message = clip(`${step}: ${failed.message}`)
  core.say(`bistable: HOOK_FAILED: ${message}`, 'warning')
  const last = core.body.outcomes.findLast((outcome) => outcome.what === 'hook')
  if (last?.message === message) return
  const outcome = { at: core.now().wall, what: 'hook', ok: false, code: 'HOOK_FAILED', message }
  await core.update((body) => addOutcome(body, outcome)).catch(() => undefined)
}

async function runHooks(core: Core, folder: string, step: HookStep, facts: HookFacts, signal?: AbortSignal) {
  const { processes, clock, config } = core.ports
  const limitMs = config.agent.policy.hookSeconds * 1000
  const end = clock.now() + limitMs
  for (const place of HOOK_FOLDERS) {
    const hooks = await processes.glob(`${place}/${folder}/*`)
    if (hooks.length > MAX_HOOKS) return { message: `${place}/${folder} has ${hooks.length} hooks`, late: false }
    for (const hook of hooks) {
      const left = end - clock.now()
      if (left <= 0) return { message: `no time was left for ${hook}`, late: true }
      const { exit, timedOut, said } = await lasting(core, left, () =>
        processes.run([hook], left, signal, environment(step, facts)),
      )
      if (exit === 0) continue
      const why = timedOut ? `no answer within ${Math.round(limitMs / 1000)} s` : `exit ${exit ?? 'by a signal'}`
      const words = said.trim()
      return { message: `${hook}: ${why}${words === '' ? '' : `: ${words}`}`, late: timedOut }
    }
  }
  return undefined
}

function environment(step: HookStep, { number, version, slot, code }: HookFacts): Readonly<Record<string, string>> {
  return {
    BISTABLE_STEP: step,
    ...(number === undefined ? {} : { BISTABLE_RELEASE: formatNumber(number) }),
    ...(version === undefined ? {} : { BISTABLE_VERSION: version }),
    ...(slot === undefined ? {} : { BISTABLE_SLOT: slot }),
    ...(code === undefined ? {} : { BISTABLE_CODE: code }),
  }
}
