import type { BootEvent } from './boot-states.ts'
import { Console, type TimedEvent } from './console.ts'
import { LabError } from './lab-error.ts'
import { type QemuMachine, type QemuOptions, startQemu } from './qemu.ts'
import { type CommandOptions, type CommandResult, Shell } from './shell.ts'

/** The device under test: power, console, boots as events, a shell, the agent's status. */

export interface DutOptions extends QemuOptions {
  readonly transcript?: string
  /** How to get a shell: an image for tests has one waiting on the console, a real one asks for a login. */
  readonly login?: { readonly user: string; readonly password: string }
}

export interface BootReport {
  readonly slot: string
  readonly boot: string
  readonly why: string
  readonly at: number
}

export class Dut {
  readonly #options: DutOptions
  #machine: QemuMachine | undefined
  #console: Console | undefined
  #shell: Shell | undefined
  /** Events before this index were already waited for. */
  #seen = 0

  constructor(options: DutOptions) {
    this.#options = options
  }

  get console(): Console {
    if (this.#console === undefined) throw new LabError('the device is off')
    return this.#console
  }

  async powerOn(): Promise<void> {
    if (this.#machine !== undefined) throw new LabError('the device is on already')
    const { transcript } = this.#options
    this.#machine = await startQemu(this.#options)
    this.#console = new Console(this.#machine.port, transcript === undefined ? {} : { transcript })
    this.#console.markPowerOn()
    this.#seen = 0
  }

  /** Cuts the power: what the guest had not flushed is lost. */
  async powerCut(): Promise<void> {
    const machine = this.#machine
    if (machine === undefined) return
    this.#machine = undefined
    this.#shell = undefined
    await this.#console?.close()
    await machine.cut()
  }

  /** Waits for the next event of one of these kinds; events of `fatal` kinds end the wait with an error. */
  async next(
    kinds: readonly BootEvent['kind'][],
    options: { timeoutMs: number; fatal?: readonly BootEvent['kind'][]; where?: (event: TimedEvent) => boolean },
  ): Promise<TimedEvent> {
    const accept = (event: TimedEvent) => kinds.includes(event.kind) && (options.where?.(event) ?? true)
    const event = await this.console.waitForEvent(accept, kinds.join(' or '), this.#seen, options)
    this.#seen = this.console.events.indexOf(event) + 1
    if (event.kind === 'boot') this.#shell = undefined
    return event
  }

  /** Forgets what was seen so far: the next wait looks only at what comes from now on. */
  skipSeen(): void {
    this.#seen = this.console.events.length
  }

  /** The next time the boot loader hands over: which slot and why. */
  async nextBoot(timeoutMs: number): Promise<BootReport> {
    const event = await this.next(['boot'], { timeoutMs })
    const { slot = '?', boot = '?', why = '?' } = event.fields
    return { slot, boot, why, at: event.at }
  }

  /** Runs a command on the device, logging in first where needed. */
  async run(command: string, options: CommandOptions = {}): Promise<CommandResult> {
    if (this.#shell === undefined) {
      if (this.#options.login !== undefined) await this.#login(this.#options.login)
      const shell = new Shell(this.console)
      await shell.open({ timeoutMs: 120_000 })
      this.#shell = shell
    }
    return this.#shell.run(command, options)
  }

  /** `bistable status --json` of the device. */
  async status(): Promise<Record<string, unknown>> {
    const { code, output } = await this.run('bistable status --json', { timeoutMs: 60_000 })
    if (code !== 0) throw new LabError(`status ended with ${code}: ${output}`)
    return JSON.parse(output) as Record<string, unknown>
  }

  async #login({ user, password }: { user: string; password: string }): Promise<void> {
    const console = this.console
    const options = { timeoutMs: 240_000 }
    let from = console.position()
    await console.write('\n')
    const seen = (pattern: RegExp) => (text: string) => (pattern.test(text.slice(-4096)) ? true : undefined)
    await console.waitForText(seen(/\S+ login: /), 'a login prompt', from, options)
    from = console.position()
    await console.write(`${user}\n`)
    await console.waitForText(seen(/Password: /), 'a password prompt', from, { timeoutMs: 60_000 })
    await console.write(`${password}\n`)
  }
}
