import type { Failure, RecordBody } from '../records/record.ts'
import type { BootLine } from './cmdline.ts'
import { failureFrom } from './core.ts'
import type { Ports } from './ports.ts'

/** Nothing keeps a reboot waiting for longer. */
const REFRESH_MS = 60_000

/**
 * Before an armed release is tried: what was changed in /etc since its install comes along. If that fails, the merge of
 * the install stands.
 * @returns what went wrong, or undefined
 */
export async function refreshEtc(ports: Ports, { state }: RecordBody, line: BootLine): Promise<Failure | undefined> {
  if (state.name !== 'armed' || state.job.kind !== 'update') return undefined
  try {
    await ports.engine.etc?.refresh(line.slot, AbortSignal.timeout(REFRESH_MS))
    return undefined
  } catch (error) {
    const failure = failureFrom(error)
    ports.say(`bistable: ${failure.code}: ${failure.message}`)
    return failure
  }
}
