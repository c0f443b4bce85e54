import { isAddress } from '../base/address.ts'
import { cliErrors, type Invocation, stringOption, type Verb } from '../base/cli.ts'
import { listOption, sizeOption } from '../base/options.ts'
import { printable } from '../base/printable.ts'
import { pathsUnder } from './config.ts'
import type { EtcReport } from './etc/prepare.ts'

/**
 * The device's verbs. Each asks whoever holds the control socket (the agent, normally); when nobody does, it takes the
 * socket and does the work itself. So everything works without the agent and without systemd.
 *
 * Heavy rooms are imported by the verb that needs them: `status` starts in a fraction of a second on slow boards.
 */

type Args = Readonly<Record<string, unknown>>

export const paths = () => pathsUnder(process.env['BISTABLE_ROOT'] ?? '')

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
      const { watchEvents } = await import('./control/client.ts')
      const { control, status } = paths()
      const progress = await makeProgress(call)
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
  {
    name: 'install',
    usage: 'install FILE|URL [--plan] [--max-bytes SIZE] [--reuse BUNDLE…] [--force] [--hold]',
    summary: 'Fill and verify the other slot from a bundle and arm it. The next boot tries it.',
    options: {
      plan: { type: 'boolean', help: 'say what would be fetched from where, and how many bytes; changes nothing' },
      'max-bytes': { type: 'string', value: 'SIZE', help: 'fail rather than fetch more, like 20M' },
      reuse: { type: 'string', multiple: true, value: 'BUNDLE', help: 'a bundle file whose chunks may serve' },
      delta: { type: 'string', value: 'FILE|URL', help: 'a patch from the running release to this one' },
      force: { type: 'boolean', help: 'take a release that failed here before' },
      hold: { type: 'boolean', help: "when it is healthy, wait for 'bistable commit'" },
    },
    run: async (call) => {
      const [given] = noMore(call, 1)
      if (given === undefined) throw cliErrors.USAGE('there is no file or address to install')
      const { resolve } = await import('node:path')
      const maxBytes = sizeOption(call, 'max-bytes')
      const delta = stringOption(call, 'delta')
      // The agent has another working directory.
      const at = (place: string): string => (isAddress(place) ? place : resolve(place))
      const args = {
        source: at(given),
        force: call.options['force'] === true,
        hold: call.options['hold'] === true,
        reuse: listOption(call, 'reuse').map((path) => resolve(path)),
        ...(maxBytes === undefined ? {} : { maxBytes }),
        ...(delta === undefined ? {} : { patch: at(delta) }),
      }
      if (call.options['plan'] !== true) return perform(call, 'install', args, (r: Said) => r.message)
      const { planText } = await import('./install/plan.ts')
      return perform(call, 'plan', args, planText)
    },
  },
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
  simple('commit', 'Make the running slot primary without waiting for its health checks.'),
  {
    name: 'rollback',
    usage: 'rollback [--with-state] [--force]',
    summary: 'Arm the release in the other slot again, if it was committed here before.',
    options: {
      'with-state': { type: 'boolean', help: 'and put the data back as that release left them (btrfs)' },
      force: { type: 'boolean', help: 'also if it cannot read the data' },
    },
    run: (call) => {
      noMore(call, 0)
      const args = { force: call.options['force'] === true, withState: call.options['with-state'] === true }
      return perform(call, 'rollback', args, (result: Said) => result.message)
    },
  },
  simple('cancel', 'Stop the running install, or take back what is armed.'),
  {
    name: 'reboot',
    usage: 'reboot [--hold]',
    summary: 'Reboot; an armed release is tried.',
    options: { hold: { type: 'boolean', help: "when it is healthy, wait for 'bistable commit'" } },
    run: (call) => {
      noMore(call, 0)
      return perform(call, 'reboot', { hold: call.options['hold'] === true }, (r: Said) => r.message)
    },
  },
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
interface Said {
  readonly message: string
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

function simple(name: string, summary: string): Verb {
  return {
    name,
    usage: name,
    summary,
    run: (call) => {
      noMore(call, 0)
      return perform(call, name, {}, (result: Said) => result.message)
    },
  }
}

/** Positionals, at most `most`. @throws USAGE */
export function noMore(call: Invocation, most: number): readonly string[] {
  const extra = call.positionals[most]
  if (extra !== undefined) throw cliErrors.USAGE(`'${extra}' is too much`)
  return call.positionals
}

export async function perform<T>(
  call: Invocation,
  verb: string,
  args: Args,
  text: (result: T) => string,
  exit: (result: T) => number = () => 0,
): Promise<number> {
  const { answer } = await import('./control/local.ts')
  const progress = await makeProgress(call)
  const onMessage = (message: object) => {
    if ('progress' in message) progress.show(message.progress)
    else if ('line' in message && !call.json) {
      progress.aside()
      call.terminal.err(String(message.line))
    }
  }
  try {
    const result = (await answer(paths(), verb, args, onMessage, call.signal)) as T
    progress.end()
    return print(call, text, result, exit(result))
  } finally {
    progress.end()
  }
}

function print<T>(call: Invocation, text: (result: T) => string, result: T, exit: number): number {
  call.terminal.out(call.json ? JSON.stringify({ ...result, ok: exit === 0 }) : text(result))
  return exit
}

async function makeProgress(call: Invocation) {
  if (call.json) return { show: () => undefined, aside: () => undefined, end: () => undefined }
  const { progressBar } = await import('./control/progress.ts')
  return progressBar(call.terminal)
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
