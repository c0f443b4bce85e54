import { isAddress } from '../../base/address.ts'
import { cliErrors, requiredOption, type Verb } from '../../base/cli.ts'
import { noMore } from '../asked.ts'
import { paths, perform } from '../cli.ts'

/** The verbs of what lies over /usr: add-ons and unlock. */

interface Said {
  readonly message: string
}

export const addonVerbs: readonly Verb[] = [
  {
    name: 'addon apply',
    usage: 'addon apply FILE|URL',
    summary: 'Put a signed add-on over /usr, until it expires or a release contains what it fixes.',
    run: async (call) => {
      const [given] = noMore(call, 1)
      if (given === undefined) throw cliErrors.USAGE('there is no file or address to apply')
      const { resolve } = await import('node:path')
      const subject = isAddress(given) ? given : resolve(given)
      return perform(call, 'addon', { what: 'apply', subject }, (r: Said) => r.message)
    },
  },
  {
    name: 'addon activate',
    usage: 'addon activate',
    summary: 'Early in a start: put the add-ons that count over /usr before the agent comes up.',
    run: async (call) => {
      noMore(call, 0)
      const { activateAddons } = await import('../control/local.ts')
      const lines = await activateAddons(paths())
      call.terminal.out(call.json ? JSON.stringify({ ok: true, lines }) : lines.join('\n'))
      return 0
    },
  },
  {
    name: 'addon list',
    usage: 'addon list',
    summary: 'Show every add-on of this device, whether it is over /usr, and why not.',
    run: async (call) => {
      noMore(call, 0)
      const { addonLines } = await import('../agent/addons.ts')
      const text = ({ addons }: { addons: Parameters<typeof addonLines>[0] }) =>
        addons.length === 0 ? 'no add-ons' : addonLines(addons).join('\n')
      return perform(call, 'addon', { what: 'list' }, text)
    },
  },
  {
    name: 'addon remove',
    usage: 'addon remove NAME',
    summary: 'Take an add-on away from /usr and off the device.',
    run: (call) => {
      const [subject] = noMore(call, 1)
      if (subject === undefined) throw cliErrors.USAGE('there is no name to remove')
      return perform(call, 'addon', { what: 'remove', subject }, (r: Said) => r.message)
    },
  },
  {
    name: 'unlock',
    usage: 'unlock --for 2h',
    summary: 'Make /usr writable for a while, in memory. Development releases only.',
    options: { for: { type: 'string', value: 'TIME', help: '30m, 2h; at most 24h' } },
    run: async (call) => {
      noMore(call, 0)
      const text = requiredOption(call, 'for')
      const [, digits, unit] = /^(\d{1,5})([mh])$/.exec(text) ?? []
      const seconds = Number(digits) * (unit === 'h' ? 3600 : 60)
      const { UNLOCK } = await import('./unlock.ts')
      if (!(seconds >= UNLOCK.least && seconds <= UNLOCK.most))
        throw cliErrors.USAGE(`--for wants a time like 30m or 2h, at most 24h, found '${text}'`)
      return perform(call, 'unlock', { seconds }, (r: Said) => r.message)
    },
  },
]
