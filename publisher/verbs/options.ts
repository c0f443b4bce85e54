import { cliErrors, type Invocation, requiredOption, stringOption } from '../../base/cli.ts'

export { listOption, sizeOption } from '../../base/options.ts'

import type { ReleaseNumber } from '../../bundle/types.ts'

/** What the publisher's verbs read from the command line. All refusals are USAGE. */

export function onePositional(call: Invocation, what: string): string {
  const [first, ...more] = call.positionals
  if (first === undefined || more.length > 0) throw cliErrors.USAGE(`wanted exactly one ${what}`)
  return first
}

/** A whole number of at least `least`, or `otherwise` when the option is not given. */
export function numberOption(call: Invocation, name: string, least: number, otherwise?: number): number {
  const text = otherwise === undefined ? requiredOption(call, name) : stringOption(call, name)
  if (text === undefined && otherwise !== undefined) return otherwise
  const value = /^\d{1,15}$/.test(text ?? '') ? Number(text) : Number.NaN
  if (!(value >= least)) throw cliErrors.USAGE(`--${name} wants a whole number of at least ${least}, found '${text}'`)
  return value
}

/** "EPOCH.COUNTER" */
export function releaseOption(call: Invocation, name: string): ReleaseNumber | undefined {
  const text = stringOption(call, name)
  if (text === undefined) return undefined
  const [, epoch, counter] = /^(\d{1,15})\.(\d{1,15})$/.exec(text) ?? []
  if (epoch === undefined || counter === undefined)
    throw cliErrors.USAGE(`--${name} wants EPOCH.COUNTER, found '${text}'`)
  return { epoch: Number(epoch), counter: Number(counter) }
}
