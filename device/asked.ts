import { resolve } from 'node:path'
import { isAddress } from '../base/address.ts'
import { cliErrors, type Invocation, stringOption, type Verb } from '../base/cli.ts'
import { listOption, sizeOption } from '../base/options.ts'
import { progressBar } from './control/progress.ts'

/**
 * Verbs that want nothing but an answer: of the agent, or of the whole program where none runs. This file and what it
 * imports are all that a command loads that asks an agent (ask.ts): keep it small.
 */

type Args = Readonly<Record<string, unknown>>

/** Gets an operation done, by whoever can, and passes on what is said meanwhile. */
export type Answer = (
  verb: string,
  args: Args,
  onMessage: (message: object) => void,
  signal: AbortSignal,
) => Promise<unknown>

export interface Said {
  readonly message: string
}

const said = (result: Said): string => result.message

/** @param planText of an install's plan */
export function askedVerbs(answer: Answer, planText: () => Promise<(plan: never) => string>) {
  return {
    install: installVerb(answer, planText),
    commit: simple(answer, 'commit', 'Make the running slot primary without waiting for its health checks.'),
    rollback: {
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
        return perform(answer, call, 'rollback', args, said)
      },
    },
    cancel: simple(answer, 'cancel', 'Stop the running install, or take back what is armed.'),
    reboot: {
      name: 'reboot',
      usage: 'reboot [--hold]',
      summary: 'Reboot; an armed release is tried.',
      options: { hold: { type: 'boolean', help: "when it is healthy, wait for 'bistable commit'" } },
      run: (call) => {
        noMore(call, 0)
        return perform(answer, call, 'reboot', { hold: call.options['hold'] === true }, said)
      },
    },
  } satisfies Record<string, Verb>
}

function installVerb(answer: Answer, planText: () => Promise<(plan: never) => string>): Verb {
  return {
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
      if (call.options['plan'] !== true) return perform(answer, call, 'install', args, said)
      return perform(answer, call, 'plan', args, await planText())
    },
  }
}

function simple(answer: Answer, name: string, summary: string): Verb {
  return {
    name,
    usage: name,
    summary,
    run: (call) => {
      noMore(call, 0)
      return perform(answer, call, name, {}, said)
    },
  }
}

/** Positionals, at most `most`. @throws USAGE */
export function noMore(call: Invocation, most: number): readonly string[] {
  const extra = call.positionals[most]
  if (extra !== undefined) throw cliErrors.USAGE(`'${extra}' is too much`)
  return call.positionals
}

/** Has an operation done, shows its progress and prints its result. @returns the exit code */
export async function perform<T>(
  answer: Answer,
  call: Invocation,
  verb: string,
  args: Args,
  text: (result: T) => string,
  exit: (result: T) => number = () => 0,
): Promise<number> {
  const progress = makeProgress(call)
  const onMessage = (message: object) => {
    if ('progress' in message) progress.show(message.progress)
    else if ('line' in message && !call.json) {
      progress.aside()
      call.terminal.err(String(message.line))
    }
  }
  try {
    const result = (await answer(verb, args, onMessage, call.signal)) as T
    progress.end()
    return print(call, text, result, exit(result))
  } finally {
    progress.end()
  }
}

export function print<T>(call: Invocation, text: (result: T) => string, result: T, exit: number): number {
  call.terminal.out(call.json ? JSON.stringify({ ...result, ok: exit === 0 }) : text(result))
  return exit
}

export function makeProgress(call: Invocation): ReturnType<typeof progressBar> {
  if (call.json) return { show: () => undefined, aside: () => undefined, end: () => undefined }
  return progressBar(call.terminal)
}
