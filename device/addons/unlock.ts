import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { addonErrors } from '../../bundle/addon-errors.ts'
import { addOutcome } from '../agent/body.ts'
import type { Core } from '../agent/core.ts'
import { guarded } from '../agent/guarded.ts'
import type { Processes } from '../agent/ports.ts'
import { runTool, TOOL_MS } from './tool.ts'

/**
 * `bistable unlock`: /usr of a development release can be written for a while, into memory. Nothing of it outlives the time or
 * a reboot, and a release that does not declare itself for development refuses.
 */

const LOOK_MS = 10_000
/** Seconds. */
export const UNLOCK = { least: 60, most: 86_400 } as const

export interface UnlockSurroundings {
  readonly processes: Processes
  /** "/run/bistable": in memory. */
  readonly run: string
  /** "/usr" */
  readonly usr: string
  /** "/proc/uptime": a clock that is set anew must not make it last longer. */
  readonly uptime: string
}

export class Unlocking {
  readonly #around: UnlockSurroundings
  readonly #layer: string
  readonly #state: string

  constructor(around: UnlockSurroundings) {
    this.#around = around
    this.#layer = join(around.run, 'unlocked')
    this.#state = join(around.run, 'unlocked-until')
  }

  /** When it ends, by the clock as it is now; undefined: /usr is as it should be. */
  async until(): Promise<Date | undefined> {
    const end = await this.#end()
    return end === undefined ? undefined : new Date(Date.now() + (end - (await this.#now())) * 1000)
  }

  /** A longer time counts from now. @throws ADDON_MOUNT */
  async begin(seconds: number): Promise<void> {
    const locked = (await this.#end()) === undefined
    await mkdir(this.#around.run, { recursive: true })
    // First: a /usr that can be written and of which nobody knows would stay so.
    await writeFile(this.#state, `${(await this.#now()) + seconds}\n`)
    if (!locked) return
    try {
      const { processes, usr } = this.#around
      for (const name of ['upper', 'work']) await mkdir(join(this.#layer, name), { recursive: true })
      await processes.run(['modprobe', 'overlay'], TOOL_MS)
      const layers = `lowerdir=${usr},upperdir=${this.#layer}/upper,workdir=${this.#layer}/work`
      await this.#tool('mount', '-t', 'overlay', 'bistable-unlocked', '-o', layers, usr)
    } catch (error) {
      await rm(this.#state, { force: true })
      throw error
    }
  }

  /** @returns true when its time had come and /usr is read-only again. @throws ADDON_MOUNT */
  async endIfDue(): Promise<boolean> {
    const end = await this.#end()
    if (end === undefined || end > (await this.#now())) return false
    // Lazily: a shell that stands in /usr keeps what it sees, and nobody else does.
    await this.#tool('umount', '-l', this.#around.usr)
    await rm(this.#state, { force: true })
    await rm(this.#layer, { recursive: true, force: true })
    return true
  }

  async #end(): Promise<number | undefined> {
    const text = await readFile(this.#state, 'utf8').catch(() => '')
    return /^\d+(\.\d+)?\n$/.test(text) ? Number(text) : undefined
  }

  /** Seconds since the kernel started. */
  async #now(): Promise<number> {
    return Number((await readFile(this.#around.uptime, 'utf8')).split(' ')[0])
  }

  async #tool(program: string, ...args: string[]): Promise<void> {
    await runTool(this.#around.processes, [program, ...args], `${program} ${args.slice(-1)}`)
  }
}

/** @throws UNLOCK_PRODUCTION, ADDON_STATE, ADDON_MOUNT */
export async function unlockNow(core: Core, seconds: number): Promise<string> {
  const { config, unlocking } = core.ports
  if (!config.development)
    throw addonErrors.UNLOCK_PRODUCTION(`the running release of ${config.product} is not declared for development`)
  if (unlocking === undefined) throw addonErrors.ADDON_STATE('/usr of this system cannot be unlocked')
  await unlocking.begin(seconds)
  const message = `/usr can be written for ${seconds} s; nothing of it is kept`
  core.say(`bistable: unlocked: ${message}`, 'warning')
  const at = core.now().wall
  await core.update((body) => addOutcome(body, { at, what: 'unlock', ok: true, message }))
  return message
}

/** Ends it in time. */
export async function watchUnlock(core: Core, signal: AbortSignal): Promise<void> {
  const { clock, unlocking } = core.ports
  if (unlocking === undefined) return
  while (!signal.aborted) {
    await guarded(core, 'unlock', async () => {
      if (!(await unlocking.endIfDue())) return
      const message = 'the time is over: /usr is read-only again'
      core.say(`bistable: unlock: ${message}`)
      const at = core.now().wall
      await core.update((body) => addOutcome(body, { at, what: 'unlock', ok: true, message }))
    })
    await clock.sleep(LOOK_MS, signal).catch(() => undefined)
  }
}
