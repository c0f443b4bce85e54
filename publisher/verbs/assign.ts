import { cliErrors, type Invocation, requiredOption, stringOption, type Verb } from '../../base/cli.ts'
import { signerOptions, signersFrom } from '../../keys/signers/options.ts'
import { assign } from '../assign.ts'
import { numberOption } from './options.ts'
import { trustedFrom, trustOptions } from './trust.ts'

/** A century. */
const MOST_HOURS = 36_525 * 24

export const assignVerb: Verb = {
  name: 'assign',
  usage: 'assign --device ID --bundle FILE --to DIR --key KEY [--sequence N]',
  summary: 'Tell one device which release to run: a signed assignment in a publish folder.',
  options: {
    ...signerOptions,
    ...trustOptions,
    device: { type: 'string', value: 'ID', help: "the device id that 'bistable status' shows there" },
    bundle: { type: 'string', value: 'FILE', help: 'the bundle of the release' },
    to: { type: 'string', value: 'DIR', help: 'the publish folder' },
    sequence: { type: 'string', value: 'N', help: 'above every earlier one of this device (one above what is there)' },
    'not-before': { type: 'string', value: 'TIME', help: 'as 2026-11-21T00:00:00Z; needs a device with a clock' },
    hours: { type: 'string', value: 'N', help: 'how long it counts (until a higher sequence replaces it)' },
    'allow-downgrade': { type: 'boolean', help: 'let the device go back to it, though never below the security floor' },
  },
  run: async (call) => {
    if (call.positionals.length > 0) throw cliErrors.USAGE(`'${call.positionals[0]}' is too much`)
    const trusted = await trustedFrom(call)
    const notBefore = stringOption(call, 'not-before')
    const sequence = optional(call, 'sequence')
    const hours = optional(call, 'hours')
    if (hours !== undefined && hours > MOST_HOURS)
      throw cliErrors.USAGE(`--hours is at most ${MOST_HOURS}, found ${hours}; leave it out for ever`)
    const request = {
      bundle: requiredOption(call, 'bundle'),
      device: requiredOption(call, 'device'),
      to: requiredOption(call, 'to'),
      signers: await signersFrom(call),
      now: Date.now(),
      allowDowngrade: call.options['allow-downgrade'] === true,
      ...(sequence === undefined ? {} : { sequence }),
      ...(hours === undefined ? {} : { validSeconds: hours * 3600 }),
      ...(notBefore === undefined ? {} : { notBefore }),
      ...(trusted === undefined ? {} : { trusted }),
    }
    const say = (line: string): void => (call.json ? undefined : call.terminal.out(line))
    const statement = await assign(request, { say, signal: call.signal })
    if (call.json) call.terminal.out(JSON.stringify({ ok: true, ...statement }))
    return 0
  },
}

function optional(call: Invocation, name: string): number | undefined {
  return call.options[name] === undefined ? undefined : numberOption(call, name, 1)
}
