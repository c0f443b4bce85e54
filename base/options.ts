import { KiB, MiB } from './bytes.ts'
import { cliErrors, type Invocation, stringOption } from './cli.ts'

/** Kinds of options that several rooms' verbs have. All refusals are USAGE. */

/** All values of an option that may be given more than once. */
export function listOption(call: Invocation, name: string): readonly string[] {
  const value = call.options[name]
  return Array.isArray(value) ? value : typeof value === 'string' ? [value] : []
}

/** "512M", "128K", "4096", "2G": bytes. */
export function sizeOption(call: Invocation, name: string): number | undefined {
  const text = stringOption(call, name)
  if (text === undefined) return undefined
  const [, digits, unit] = /^(\d{1,12})([KMG]?)$/.exec(text) ?? []
  const factor = unit === 'G' ? 1024 * MiB : unit === 'M' ? MiB : unit === 'K' ? KiB : 1
  const bytes = Number(digits) * factor
  if (digits === undefined || !Number.isSafeInteger(bytes))
    throw cliErrors.USAGE(`--${name} wants a size like 512M, found '${text}'`)
  return bytes
}
