import { addonErrors } from '../../bundle/addon-errors.ts'
import type { Processes } from '../agent/ports.ts'

/** Milliseconds that a tool of the system may take. */
export const TOOL_MS = 30_000

/**
 * Runs a tool of the system to its end.
 * @param about what the error names it by
 * @returns what it said
 * @throws ADDON_MOUNT
 */
export async function runTool(
  processes: Processes,
  argv: readonly [string, ...string[]],
  about: string,
  env?: Readonly<Record<string, string>>,
): Promise<string> {
  const { exit, timedOut, said } = await processes.run(argv, TOOL_MS, undefined, env)
  if (exit === 0) return said
  const why = timedOut ? 'no answer' : said.trim() || `exit ${exit ?? 'by a signal'}`
  throw addonErrors.ADDON_MOUNT(`${about}: ${why}`)
}
