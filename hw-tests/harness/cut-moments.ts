import { setTimeout as sleep } from 'node:timers/promises'
import type { Dut } from './dut.ts'
import { DutError } from './lab-error.ts'

/**
 * Random moments at which to cut the power, told in steps of the work and not in time: a slow machine cuts as a fast one.
 * Each function starts the work and returns at the moment, with words that say where it is.
 */

/** Progress lines of one install: seven phases, ten percent a line. */
const INSTALL_LINES = 75
/** Events from the boot loader's line to the agent's "committed": kernel, stages of the initramfs, trying. */
const BOOT_EVENTS = 11
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
  const where = await dut.console.waitForText(reached, `${lines} progress lines`, from, { timeoutMs: STEP_MS })
  await sleep(more)
  return `install, ${where} of about ${INSTALL_LINES}, and ${more} ms`
}

/** Reboots into what is armed in `slot`: somewhere between the boot loader and the commit. */
export async function momentOfTry(dut: Dut, slot: 'a' | 'b', random: () => number): Promise<string> {
  const events = below(random, BOOT_EVENTS)
  const more = below(random, 1500)
  await dut.reboot()
  const boot = await dut.nextBoot(STEP_MS)
  if (boot.slot !== slot || boot.boot !== 'try')
    throw new DutError(`a try of slot ${slot} was armed, the boot loader started ${JSON.stringify(boot)}`)
  let last = 'boot'
  for (let seen = 0; seen < events && last !== 'committed'; seen++)
    last = (await dut.next(['kernel', 'initramfs', 'trying', 'committed'], { timeoutMs: STEP_MS })).kind
  await sleep(more)
  return `first try, ${last} (event ${events} of ${BOOT_EVENTS}), and ${more} ms`
}

/** The power has just come: somewhere between the firmware and an agent that runs. */
export async function momentOfBoot(dut: Dut, random: () => number): Promise<string> {
  const events = below(random, BOOT_EVENTS)
  const more = below(random, 1500)
  const up = ['running', 'committed', 'fell-back'] as const
  let last = 'power on'
  for (let seen = 0; seen < events && !up.some((kind) => kind === last); seen++) {
    const fatal = ['panic', 'initramfs-failed', 'emergency'] as const
    last = (await dut.next(['boot', 'kernel', 'initramfs', 'trying', ...up], { timeoutMs: STEP_MS, fatal })).kind
  }
  await sleep(more)
  return `boot, ${last} (event ${events} of ${BOOT_EVENTS}), and ${more} ms`
}

/** Asks for a reboot: somewhere on the way down, in the firmware or in the boot loader. */
export async function momentOfReboot(dut: Dut, random: () => number): Promise<string> {
  const more = below(random, DOWN_MS)
  await dut.reboot()
  await sleep(more)
  return `reboot, ${more} ms after it was asked for`
}
