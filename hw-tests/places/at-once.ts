import { availableParallelism } from 'node:os'
import { LabError } from '../harness/lab-error.ts'
import { choosePlaceName, PLACES } from './index.ts'

const MOST = 8

/**
 * How many test files run side by side: one on a board. An emulated device idles a quarter of its time (a countdown, a flush, a
 * health check's deadline), so there is one more than processors; each has 512 MiB or more, so there are no more than eight.
 * `HIL_WORKERS` says otherwise.
 */
export function testsAtOnce(
  env: Readonly<Record<string, string | undefined>>,
  processors: number = availableParallelism(),
): number {
  // A board of a bench may have any other name.
  if (!Object.hasOwn(PLACES, choosePlaceName(env['HIL_PLACE']))) return 1
  const wanted = env['HIL_WORKERS'] ?? ''
  if (!/^([1-9]\d?)?$/.test(wanted)) throw new LabError(`HIL_WORKERS is "${wanted}", a number from 1 to 99 was wanted`)
  return wanted === '' ? Math.min(MOST, Math.max(2, processors + 1)) : Number(wanted)
}
