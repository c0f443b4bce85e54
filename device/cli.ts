import { cliErrors, type Invocation, stringOption, type Verb } from '../base/cli.ts'
import { printable } from '../base/printable.ts'
import { type Answer, askedVerbs, makeProgress, noMore, perform as performAsked, print, type Said } from './asked.ts'
import { pathsUnder } from './config.ts'
import type { EtcReport } from './etc/prepare.ts'

/**
 * The device's verbs. Each asks whoever holds the control socket (the agent, normally); when nobody does, it takes the
 * socket and does the work itself. So everything works without the agent and without systemd.
 *
 * Heavy rooms are imported by the verb that needs them: `status` starts in a fraction of a second on slow boards.
 */

export const paths = () => pathsUnder(process.env['BISTABLE_ROOT'] ?? '')

const answered: Answer = async (...asked) => (await import('./control/local.ts')).answer(paths(), ...asked)
const asked = askedVerbs(answered, async () => (await import('./install/plan.ts')).planText)

export const deviceVerbs: readonly Verb[] = [
  {
    name: 'status',
    usage: 'status',
    summary: 'Show both slots, the state, floors, freshness, the last outcome and the last failure. Needs no root.',
    run: async (call) => {
      noMore(call, 0)
      const { answerStatus } = await import('./control/local.ts')
      const { statusText } = await import('./agent/status.ts')
      return print(call, statusText, await answerStatus(paths(), call.signal), 0)
    },
  },
  {
    name: 'history',
    usage: 'history [--last N]',
    summary: 'Show the last outcomes with their codes and reasons, at most 100. Needs no root.',
    options: { last: { type: 'string', value: 'N', help: 'only so many' } },
    run: async (call) => {
      noMore(call, 0)
      const last = stringOption(call, 'last') ?? '100'
      if (!/^[1-9]\d{0,2}$/.test(last)) throw cliErrors.USAGE(`'${last}' is not a number of outcomes`)
      const { answerStatus } = await import('./control/local.ts')
      const { historyText } = await import('./agent/status.ts')
      const { outcomes } = await answerStatus(paths(), call.signal)
      return print(call, historyText, { outcomes: outcomes.slice(-Number(last)) }, 0)
    },
  },
  {
    name: 'watch',
    usage: 'watch',
    summary: 'Show what the agent does, as it happens, until stopped. Needs no root.',
    run: async (call) => {
      noMore(call, 0)
      const { watchEvents } = await import('./control/watch.ts')
      const { control, status } = paths()
      const progress = makeProgress(call)
      await watchEvents([control, status], call.signal, (name, data) => {
        if (call.json) call.terminal.out(JSON.stringify({ [name]: data }))
        else if (name === 'progress') progress.show(data)
        else {
          progress.aside()
          call.terminal.out(String(data))
        }
      })
      progress.end()
      return 0
    },
  },
  {
    name: 'check',
    usage: 'check [--url URL]',
    summary: 'Ask the channel what is newest and say what would be done. Changes no slot.',
    options: { url: { type: 'string', value: 'URL', help: 'ask this channel instead of the configured one' } },
    run: (call) => {
      noMore(call, 0)
      const url = stringOption(call, 'url')
      return perform(call, 'check', url === undefined ? {} : { url }, checkText)
    },
  },
  asked.install,
  {
    name: 'usb',
    usage: 'usb [DEVICE] [--check]',
    summary: 'Install the newest acceptable bundle from a stick, apply its add-ons, and leave the result on it.',
    options: {
      check: { type: 'boolean', help: 'say what would be installed' },
      event: { type: 'boolean', help: 'asked by udev: does nothing unless usb.watch is event' },
    },
    run: (call) => {
      const [device] = noMore(call, 1)
      const args = { check: call.options['check'] === true, event: call.options['event'] === true }
      return perform(call, 'usb', device === undefined ? args : { ...args, device }, stickText)
    },
  },
  asked.commit,
  asked.rollback,
  asked.cancel,
  asked.reboot,
  {
    name: 'verify',
    usage: 'verify [a|b]',
    summary: 'Read slots from the medium and compare them with their signed statements.',
    run: (call) => {
      const [slot] = noMore(call, 1)
      return perform(call, 'verify', slot === undefined ? {} : { slot }, verifyText, (r: Verified) =>
        r.slots.every((s) => s.ok) ? 0 : 8,
      )
    },
  },
  {
    name: 'repair',
    usage: 'repair [--slot a|b]',
    summary: 'Make the boot state and the record of the slots whole again; say what was found and done.',
    options: {
      slot: { type: 'string', value: 'a|b', help: 'this slot is primary, where nothing on the device knows' },
    },
    run: async (call) => {
      noMore(call, 0)
      const { repairText } = await import('./repair/repair.ts')
      const slot = stringOption(call, 'slot')
      return perform(call, 'repair', slot === undefined ? {} : { slot }, repairText)
    },
  },
  {
    name: 'etc',
    usage: 'etc preview FILE|URL | etc report | etc resolve PATH local|image|refuse',
    summary:
      'How /etc follows a release: what a merge would do, what the last one did, and rules for what is in doubt.',
    run: async (call) => {
      const [what = 'report', ...rest] = noMore(call, 3)
      const { resolve } = await import('node:path')
      const [first, second] = rest
      const at = what === 'preview' && first !== undefined && !/^[a-z]+:/i.test(first) ? resolve(first) : first
      const { etcVerbText } = await import('./etc/text-report.ts')
      const exit = (result: EtcAnswer) => ((result.report?.refused ?? 0) > 0 ? 3 : 0)
      return perform(call, 'etc', { what, ...(at && { first: at }), ...(second && { second }) }, etcVerbText, exit)
    },
  },
  {
    name: 'drift',
    usage: 'drift [--diff]',
    summary: 'What in /etc and in writable paths differs from the running release.',
    options: { diff: { type: 'boolean', help: 'show changed text line by line' } },
    run: async (call) => {
      noMore(call, 0)
      const { driftText } = await import('./drift/drift.ts')
      return perform(call, 'drift', { diff: call.options['diff'] === true }, driftText)
    },
  },
  {
    name: 'health',
    usage: 'health',
    summary: 'Run every health check once and show the results. Decides nothing.',
    run: (call) => {
      noMore(call, 0)
      return perform(call, 'health', {}, healthText, (r: Health) => (r.ok ? 0 : 6))
    },
  },
  {
    name: 'agent',
    usage: 'agent',
    summary: 'Run the agent: bring a try to its verdict, then follow the channel.',
    run: async (call) => {
      noMore(call, 0)
      const { runDaemon } = await import('./control/local.ts')
      await runDaemon(paths(), call.terminal.out, call.signal)
      return 0
    },
  },
]

interface EtcAnswer {
  readonly report?: EtcReport
  readonly message?: string
}
interface Verified {
  readonly slots: readonly { slot: string; ok: boolean; version: string; fault?: string }[]
}
interface Health {
  readonly ok: boolean
  readonly checks: readonly { name: string; required: boolean; ok: boolean; ms: number; said: string }[]
}
interface OnStick extends Said {
  readonly files?: readonly { readonly name: string; readonly code: string; readonly message: string }[]
  readonly notes?: readonly string[]
}
interface Checked extends Said {
  readonly decision: string
  readonly apply: string
  readonly bundle?: string
  readonly patch?: { readonly from: string }
  readonly freshness: { readonly clock: string; readonly expires: string }
}

/** As `asked.ts` has it, done by whoever holds the control socket. */
export function perform<T>(
  call: Invocation,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  text: (result: T) => string,
  exit?: (result: T) => number,
): Promise<number> {
  return performAsked(answered, call, verb, args, text, exit)
}

function stickText({ message, files = [], notes = [] }: OnStick): string {
  const lines = files.map((file) => `  ${file.name}  ${file.code}: ${file.message}`)
  return [message, ...lines, ...notes.map((note) => `  note: ${note}`)].map(printable).join('\n')
}

function checkText(found: Checked): string {
  const would = {
    'up-to-date': 'nothing to do',
    older: 'nothing to do',
    blocked: "not tried again by itself; 'bistable install --force' would",
    waits: 'nothing to do yet',
    armed: found.apply === 'reboot' ? 'the agent would reboot' : "'bistable reboot' tries it",
    update:
      found.apply === 'manual'
        ? `'bistable install ${found.bundle}${found.patch === undefined ? '' : ` --delta ${found.patch.from}`}' installs it`
        : `the agent would install it${found.apply === 'reboot' ? ' and reboot' : ''}`,
  }[found.decision]
  const clock =
    found.freshness.clock === 'synchronised' ? '' : ' (the clock is not set: judged by the newest verified time)'
  return [`${found.decision}: ${found.message}`, `  ${would}`, `  fresh until ${found.freshness.expires}${clock}`].join(
    '\n',
  )
}

function verifyText(result: Verified): string {
  return result.slots.map((s) => `slot ${s.slot}  ${s.version}  ${s.ok ? 'ok' : `DAMAGED: ${s.fault}`}`).join('\n')
}

function healthText(report: Health): string {
  const lines = report.checks.map(
    (c) => `${c.ok ? 'ok    ' : 'failed'}  ${c.required ? 'required' : 'wanted  '}  ${c.ms} ms  ${c.name}  ${c.said}`,
  )
  return [...lines.map(printable), report.ok ? 'healthy' : 'not healthy'].join('\n')
}
