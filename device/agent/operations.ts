import { cliErrors } from '../../base/cli.ts'
import { SLOTS } from '../../bootloader/state.ts'
import { unlockNow } from '../addons/unlock.ts'
import type { Message } from '../control/client.ts'
import { runChecks } from '../health/health.ts'
import { repairNow } from '../repair/repair.ts'
import { useByHand } from '../usb/watch.ts'
import { addonStatus, applyAddon, removeAddon } from './addons.ts'
import { holdArmed } from './body.ts'
import { checkChannel } from './channel.ts'
import { type Core, failureFrom } from './core.ts'
import { noteCheck } from './guarded.ts'
import { after, before } from './hooks.ts'
import { checkAnywhere } from './mirrors.ts'
import type { PatchPlace } from './patch-offer.ts'
import { planFrom } from './plan-verb.ts'
import type { Clock } from './ports.ts'
import { rollBackNow } from './roll-back.ts'
import { statusOf } from './status.ts'
import { healthConfig } from './verdict.ts'
import { cancelNow, commitNow, installFrom, type Progress, verifySlot } from './work.ts'

/** The operations by name: what the control socket serves, and what a command does by itself when no agent runs. */
export async function operate(
  core: Core,
  verb: string,
  args: Readonly<Record<string, unknown>>,
  emit: (message: Message) => void,
  outer: AbortSignal,
): Promise<unknown> {
  const alone = <T>(work: (signal: AbortSignal) => Promise<T>) => core.exclusive(verb, outer, work)
  switch (verb) {
    case 'status':
      return statusOf(core)
    case 'cancel':
      return { message: await cancelNow(core) }
    case 'check':
      return alone((signal) => check(core, textOf(args, 'url'), signal))
    case 'install':
    case 'plan': {
      const source = textOf(args, 'source')
      if (source === undefined) throw cliErrors.USAGE('there is no file or address to install')
      const onProgress = seldom(core.ports.clock, (progress) => emit({ progress }))
      const options = { force: args['force'] === true, hold: args['hold'] === true, onProgress, ...limitsOf(args) }
      return alone<unknown>((signal) => (verb === 'plan' ? planFrom : installFrom)(core, source, options, signal))
    }
    case 'usb': {
      const { watch } = core.ports.config.agent.usb
      // udev says so for every stick; the setting decides whether it counts.
      if (args['event'] === true && watch !== 'event')
        return { message: `sticks are not used when plugged in: usb.watch is ${watch}` }
      const ask = { device: textOf(args, 'device'), check: args['check'] === true }
      const onProgress = seldom(core.ports.clock, (progress) => emit({ progress }))
      return alone((signal) => useByHand(core, ask, onProgress, signal))
    }
    case 'commit':
      return alone(async () => ({ message: await commitNow(core) }))
    case 'rollback':
      return alone(async () => {
        const options = { force: args['force'] === true, withState: args['withState'] === true }
        return { message: await rollBackNow(core, options) }
      })
    case 'repair': {
      const told = textOf(args, 'slot')
      const slot = SLOTS.find((known) => known === told)
      if (told !== undefined && slot === undefined) throw cliErrors.USAGE(`there is no slot '${told}'`)
      return alone((signal) => repairNow(core, slot, signal))
    }
    case 'reboot':
      return alone(async (signal) => {
        if (args['hold'] === true) await core.update(holdArmed)
        await before(core, 'reboot', 'job' in core.body.state ? core.body.state.job : {}, signal)
        await core.reboot()
        return { message: 'the system is going down' }
      })
    case 'verify': {
      const wanted = textOf(args, 'slot')
      const slots = SLOTS.filter((slot) => wanted === undefined || slot === wanted)
      if (slots.length === 0) throw cliErrors.USAGE(`there is no slot '${wanted}'`)
      return alone(async (signal) => {
        const results = []
        for (const slot of slots) results.push(await verifySlot(core, slot, signal))
        return { slots: results }
      })
    }
    case 'health':
      return alone((signal) => runChecks(core.ports, healthConfig(core.ports), signal))
    case 'drift':
      return (await import('./drift-verb.ts')).operateDrift(core, outer, args['diff'] === true)
    case 'addon': {
      const subject = textOf(args, 'subject') ?? ''
      if (args['what'] === 'list') return { addons: await addonStatus(core) }
      if (args['what'] === 'remove') return alone(async () => ({ message: await removeAddon(core, subject) }))
      return alone(async (signal) => ({ message: await applyAddon(core, subject, signal) }))
    }
    case 'unlock':
      return alone(async () => ({ message: await unlockNow(core, Number(args['seconds'])) }))
    case 'etc':
      return alone(async (signal) => (await import('./etc-verbs.ts')).operateEtc(core, args, signal))
    default:
      throw cliErrors.USAGE(`'${verb}' is not an operation`)
  }
}

/** Between two words of progress in one phase, for who asked over the socket. */
const SHOWN_MS = 100

/** Progress comes with every piece of an image; a phase's beginning and its end are always told. */
function seldom(clock: Clock, tell: (progress: Progress) => void): (progress: Progress) => void {
  let told: Progress | undefined
  let toldAt = Number.NEGATIVE_INFINITY
  return (progress) => {
    const now = clock.now()
    const goesOn = told?.phase === progress.phase && told.image === progress.image && progress.done < progress.total
    if (goesOn && now - toldAt < SHOWN_MS) return
    told = progress
    toldAt = now
    tell(progress)
  }
}

async function check(core: Core, url: string | undefined, signal: AbortSignal) {
  const { agent } = core.ports.config
  try {
    await before(core, 'check', {}, signal)
    const found = await (url === undefined ? checkAnywhere(core, signal) : checkChannel(core, url, signal))
    await noteCheck(core, true, undefined, `${found.decision}: ${found.message}`)
    await after(core, 'check', { number: found.number })
    return { ...found, apply: agent.apply }
  } catch (error) {
    const { code, message } = failureFrom(error)
    await noteCheck(core, false, code, message)
    throw error
  }
}

/** What a person lets an install fetch, and where else chunks may be found. */
function limitsOf({ maxBytes, reuse, patch }: Readonly<Record<string, unknown>>): {
  readonly maxBytes?: number
  readonly reuse?: readonly string[]
  readonly patch?: PatchPlace
} {
  const paths = Array.isArray(reuse) ? reuse.filter((path) => typeof path === 'string') : []
  return {
    ...(typeof maxBytes === 'number' && maxBytes >= 0 ? { maxBytes } : {}),
    ...(paths.length > 0 ? { reuse: paths } : {}),
    ...(typeof patch === 'string' ? { patch: { from: patch } } : {}),
  }
}

function textOf(args: Readonly<Record<string, unknown>>, name: string): string | undefined {
  const value = args[name]
  return typeof value === 'string' ? value : undefined
}
