import { isBistableError } from '../../base/errors.ts'
import { type Core, failureFrom } from '../agent/core.ts'
import type { Progress } from '../agent/work.ts'
import { usbErrors } from './errors.ts'
import type { Stick } from './find.ts'
import { type StickOptions, type StickReport, useStick } from './stick.ts'
import type { Sticks } from './sticks.ts'

/** Who asks for a stick to be used: a person, udev, or the agent that looks by itself. */

const LOOK_MS = 2000

function settings(core: Core, onProgress: (progress: Progress) => void): StickOptions {
  const { apply, result, hook } = core.ports.config.agent.usb
  return { apply, result, hook, onProgress }
}

function sticksOf(core: Core): Sticks {
  if (core.ports.sticks === undefined) throw usbErrors.USB_NONE('sticks are not looked for here')
  return core.ports.sticks
}

/** By hand: the stick that is named, or the first that is there. @throws as `useStick`, USB_NONE, USB_NOT_A_STICK */
export async function useByHand(
  core: Core,
  ask: { readonly device: string | undefined; readonly check: boolean },
  onProgress: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<StickReport> {
  const sticks = sticksOf(core)
  const stick = ask.device === undefined ? (await sticks.list())[0] : await sticks.named(ask.device)
  if (stick === undefined) throw usbErrors.USB_NONE('no removable or USB disk is plugged in')
  const set = settings(core, onProgress)
  return await useStick(core, sticks, stick, ask.check ? { ...set, apply: 'check' } : set, signal)
}

/**
 * Looks every two seconds and uses each stick once: again only when it was pulled and plugged in. While something else is
 * at work, or a release is being tried, sticks wait. Ends with the signal only.
 */
export async function watchSticks(core: Core, signal: AbortSignal): Promise<void> {
  const { sticks, config, clock } = core.ports
  if (sticks === undefined || config.agent.usb.watch !== 'poll') return
  let used = new Set<string>()
  while (!signal.aborted) {
    const there = await sticks.list().catch((): readonly Stick[] => [])
    used = new Set(there.map(({ identity }) => identity).filter((identity) => used.has(identity)))
    for (const stick of there) {
      if (signal.aborted || used.has(stick.identity) || core.body.state.name === 'trying') continue
      if (await useOnce(core, sticks, stick, signal)) used.add(stick.identity)
    }
    await clock.sleep(LOOK_MS, signal).catch(() => undefined)
  }
}

/** @returns false when it has to wait */
async function useOnce(core: Core, sticks: Sticks, stick: Stick, signal: AbortSignal): Promise<boolean> {
  try {
    await core.exclusive('usb', signal, async (inner) => {
      const report = await useStick(
        core,
        sticks,
        stick,
        settings(core, () => undefined),
        inner,
      )
      core.ports.say(`bistable: stick ${stick.name} OK ${report.message}`)
    })
  } catch (error) {
    if (isBistableError(error, 'AGENT_BUSY')) return false
    const { code, message } = failureFrom(error)
    core.ports.say(`bistable: stick ${stick.name} ${code} ${message}`)
  }
  return true
}
