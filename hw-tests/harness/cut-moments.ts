import { setTimeout as sleep } from 'node:timers/promises'
import type { BootEvent } from './boot-states.ts'
import type { Dut } from './dut.ts'
import { DutError } from './lab-error.ts'

/**
 * Random moments at which to cut the power, told in steps of the work and not in time: a slow machine cuts as a fast one.
 * Each function starts the work and returns at the moment, with words that say where it is.
 */

/** Progress lines of one install: seven phases, ten percent a line. */
const INSTALL_LINES = 75
/**
 * Steps behind the boot loader's line. A try has the kernel's, seven stages of the initramfs, trying, committed; another boot
 * has seven, and ends with an agent that runs. Notes of the initramfs are none: they would use up the steps before the agent.
 */
const TRY_STEPS = 10
const OTHER_STEPS = 7
/** Part of the boots that are cut before that line. */
const EARLY = 0.1
const isStep = ({ kind, line }: BootEvent) => kind !== 'initramfs' || line.includes('bistable-init: stage ')
/** How long a step takes: most of them; from the last stage of the initramfs until the agent speaks; until it commits. */
const WITHIN_MS = 1500
const LONGER_MS: Readonly<Record<string, number>> = { 'stage switch': 9000, trying: 3000 }
const STEP_MS = 300_000
/** Shutdown, firmware and boot loader together, on a fast machine. */
const DOWN_MS = 6000

const below = (random: () => number, most: number) => Math.floor(random() * (most + 1))

/** Somewhere in an install or, with the last steps, after it. */
export async function momentOfInstall(dut: Dut, address: string, random: () => number): Promise<string> {
  const lines = below(random, INSTALL_LINES)
  const more = below(random, 400)
  const from = dut.console.position()
  // Not to a terminal: plain lines, one for ten percent.
  await dut.type(`bistable install ${address} 2>&1 | cat`)
  const reached = (text: string) => {
    const armed = / is armed in slot /.test(text)
    const failed = /bistable: [A-Z]+_[A-Z_]+: .*/.exec(text)?.[0]
    const percents = text.match(/ \d+%/g)?.length ?? 0
    if (failed !== undefined) throw new DutError(`the install failed before it was cut: ${failed}`)
    return armed || percents >= lines ? `progress line ${percents}` : undefined
  }
  const where = await dut.console.waitForText(reached, `${lines} progress lines`, from, {
    timeoutMs: STEP_MS,
    ...(dut.signal && { signal: dut.signal }),
  })
  await sleep(more)
  return `install, ${where} of about ${INSTALL_LINES}, and ${more} ms`
}

/** Reboots into what is armed in `slot`: somewhere between the boot loader and the commit. */
export async function momentOfTry(dut: Dut, slot: 'a' | 'b', random: () => number): Promise<string> {
  const [steps, more] = [below(random, TRY_STEPS), random()]
  await dut.reboot()
  const boot = await dut.nextBoot(STEP_MS)
  if (boot.slot !== slot || boot.boot !== 'try')
    throw new DutError(`a try of slot ${slot} was armed, the boot loader started ${JSON.stringify(boot)}`)
  return `first try, ${await reach(dut, steps, more)}`
}

/** The power has just come: somewhere between the firmware and an agent that runs. */
export async function momentOfBoot(dut: Dut, random: () => number): Promise<string> {
  const [lot, more] = [random(), random()]
  if (lot < EARLY) {
    const early = Math.floor(more * WITHIN_MS)
    await sleep(early)
    return `boot, ${early} ms from power on`
  }
  const { boot } = await dut.nextBoot(STEP_MS)
  const steps = below(() => (lot - EARLY) / (1 - EARLY), boot === 'try' ? TRY_STEPS : OTHER_STEPS)
  return `${boot}, ${await reach(dut, steps, more)}`
}

/** So many steps from the boot loader's line on, fewer when the agent's work is done before; then a part of the next, 0 .. 1. */
async function reach(dut: Dut, steps: number, part: number): Promise<string> {
  const up = ['running', 'committed', 'fell-back'] as const
  const fatal = ['panic', 'boot', 'initramfs-failed', 'emergency'] as const
  const wait = { timeoutMs: STEP_MS, fatal, where: isStep }
  let last = 'boot'
  for (let seen = 0; seen < steps && !up.some((kind) => kind === last); seen++) {
    const { kind, line } = await dut.next(['kernel', 'initramfs', 'trying', ...up], wait)
    last = /stage \w+/.exec(line)?.[0] ?? kind
  }
  const more = Math.floor(part * (LONGER_MS[last] ?? WITHIN_MS))
  await sleep(more)
  return `${last} (step ${steps}), and ${more} ms`
}

/** Asks for a reboot: somewhere on the way down, in the firmware or in the boot loader. */
export async function momentOfReboot(dut: Dut, random: () => number): Promise<string> {
  const more = below(random, DOWN_MS)
  await dut.reboot()
  await sleep(more)
  return `reboot, ${more} ms after it was asked for`
}
