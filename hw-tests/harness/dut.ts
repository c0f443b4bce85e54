import { setTimeout as sleep } from 'node:timers/promises'
import type { BootEvent, BootState } from './boot-states.ts'
import { Console, type TimedEvent, type WaitOptions } from './console.ts'
import { partitionDigest } from './disk.ts'
import { DutError, LabError } from './lab-error.ts'
import type { Machine } from './machine.ts'
import { type QemuOptions, startQemu } from './qemu.ts'
import type { Session } from './record.ts'
import { type CommandOptions, type CommandResult, Shell } from './shell.ts'
import { getFile, putFile } from './transfer.ts'

/** The device under test: power, console, boots as events, a shell, the agent's status. */

export interface DutOptions extends Omit<QemuOptions, 'restore'> {
  readonly transcript?: string
  /** How to get a shell: an image for tests has one waiting on the console, a real one asks for a login. */
  readonly login?: { readonly user: string; readonly password: string }
  /** Gives the power, where it is no QEMU machine. */
  readonly machine?: () => Promise<Machine>
  /** Has the medium while the power is off, where it is no file. */
  readonly withMedium?: <T>(act: (device: string) => Promise<T>) => Promise<T>
}

/** What a command of the agent answered with `--json`. */
export interface Answer {
  /** Exit code. */
  readonly code: number
  readonly body: Readonly<Record<string, unknown>>
  /** Code of the error, of one that failed. */
  readonly error: string | undefined
}

export interface BootReport {
  readonly slot: string
  readonly boot: string
  readonly why: string
  readonly at: number
}

const SEEN_AT_ONCE = 8192
const SHELL_MS = 300_000
/** A hung emulator is asked no longer than that. */
const ACCOUNT_MS = 10_000
/** Power sessions that are remembered for the reports. */
const KEPT_SESSIONS = 500

interface Power {
  readonly console: Console
  /** By the wall clock, in milliseconds. */
  readonly from: number
  to: number | undefined
  cut: boolean
  readonly restored: boolean
}

export class Dut {
  readonly #options: DutOptions
  #power: Power[] = []
  #transcript: string | undefined
  #machine: Machine | undefined
  #console: Console | undefined
  #shell: Shell | undefined
  /** Console events by the time the shell was opened. */
  #shellSince = 0
  /** Ends every wait: the running test's. */
  signal: AbortSignal | undefined
  #watch: ((event: TimedEvent) => boolean) | undefined
  #hadStick = false
  /** Events before this index were already waited for. */
  #seen = 0

  constructor(options: DutOptions) {
    this.#options = options
    this.#transcript = options.transcript
  }

  get console(): Console {
    if (this.#console === undefined) throw new LabError('the device is off')
    return this.#console
  }

  /** True while the device has power. */
  get on(): boolean {
    return this.#machine !== undefined
  }

  /** The state and the last console lines, also of a device that is off by now. */
  lastWords(): { readonly state: BootState; readonly tail: string } {
    return { state: this.#console?.state ?? 'off', tail: this.#console?.tail() ?? '(it was never on)' }
  }

  /** Puts into the transcript what an emulator says of itself: for a test that failed, while it still has power. */
  async account(): Promise<void> {
    const late = sleep(ACCOUNT_MS, [], { ref: false })
    const said = await Promise.race([this.#machine?.account?.().catch(() => []) ?? [], late])
    for (const line of said) this.#console?.remark(line)
  }

  /** Whether a stick was ever plugged into it. */
  get hadStick(): boolean {
    return this.#hadStick
  }

  /** Path of the disk image. */
  get disk(): string {
    return this.#options.disk
  }

  /** Power on; with `restore` a saved state goes on instead of booting. */
  async powerOn(options: Pick<QemuOptions, 'restore' | 'faults'> = {}): Promise<void> {
    if (this.#machine !== undefined) throw new LabError('the device is on already')
    const start = this.#options.machine
    this.#machine = start === undefined ? await startQemu({ ...this.#options, ...options }) : await start()
    const { port, modem } = this.#machine
    this.#console = new Console(port, {
      ...(modem && { modem }),
      ...(this.#transcript !== undefined && { transcript: this.#transcript }),
    })
    this.#console.watchFor(this.#watch)
    const restored = options.restore !== undefined
    this.#console.markPowerOn(restored)
    this.#seen = 0
    this.#power.push({ console: this.#console, from: Date.now(), to: undefined, cut: false, restored })
    this.#power = this.#power.slice(-KEPT_SESSIONS)
  }

  /** What was seen since a moment of the wall clock, for the reports; times count from that moment. */
  sessionsSince(begin: number): Session[] {
    return this.#power
      .filter(({ to }) => to === undefined || to > begin)
      .map(({ console, from, to, cut, restored }) => ({
        from: Math.max(0, from - begin),
        to: (to ?? Date.now()) - begin,
        initial: restored || from < begin ? 'userspace' : 'off',
        cut,
        events: console.events
          .map(({ at, kind, line, fields }) => ({ at: from + at - begin, kind, line, fields }))
          .filter(({ at }) => at >= 0),
      }))
  }

  #powerEnds(cut: boolean): void {
    const last = this.#power.at(-1)
    if (last === undefined || last.to !== undefined) return
    last.to = Date.now()
    last.cut = cut
  }

  /** An event that `bad` takes ends every wait, on this power session and those to come. */
  watchFor(bad: ((event: TimedEvent) => boolean) | undefined): void {
    this.#watch = bad
    this.#console?.watchFor(bad)
  }

  /** A file of the device, over the console. */
  async get(path: string, atMost: number): Promise<Buffer> {
    return getFile(await this.#openShell(), path, atMost, this.signal && { signal: this.signal })
  }

  /** A file of this machine goes to the device, over the console. */
  async put(local: string, path: string): Promise<void> {
    return putFile(await this.#openShell(), local, path, this.signal && { signal: this.signal })
  }

  /** The transcript goes to this file from now on. */
  logTo(transcript: string): void {
    this.#transcript = transcript
    if (this.on) this.#console?.logTo(transcript)
  }

  /** Saves the running machine's state into a file and ends it; the disk as it is then belongs to that state. */
  async save(file: string): Promise<void> {
    const machine = this.#machine
    if (machine === undefined) throw new LabError('the device is off')
    if (machine.save === undefined) throw new LabError('this machine cannot save its state')
    this.#machine = undefined
    this.#shell = undefined
    this.#powerEnds(false)
    await this.#console?.close()
    await machine.save(file)
  }

  /** A stick with this image is plugged in, read-only; the device sees one more disk. */
  async plug(image: string): Promise<void> {
    this.#hadStick = true
    await this.#machine?.plug(image)
  }

  /** It is pulled, without a word before. */
  async unplug(): Promise<void> {
    await this.#machine?.unplug()
  }

  /** SHA-256 of a partition of the running device, from outside where that can be, or else as the device sees it. */
  async partitionDigest(name: string): Promise<string> {
    const disk = this.#machine?.liveDisk
    if (disk !== undefined) return partitionDigest(disk, name)
    const found = `f=$(grep -lx 'PARTNAME=${name}' /sys/class/block/*/uevent | head -n 1)`
    const node = '"/dev/$(basename "$(dirname "$f")")"'
    const { code, output } = await this.run(`${found}; sha256sum ${node}`, { timeoutMs: 600_000 })
    const digest = /^[0-9a-f]{64}/.exec(output)?.[0]
    if (code !== 0 || digest === undefined) throw new DutError(`no digest of partition ${name}: ${output}`)
    return digest
  }

  /** Changes or reads the medium of the device, which must be off. */
  async withMedium<T>(act: (device: string) => Promise<T>): Promise<T> {
    if (this.on) throw new LabError('the medium belongs to the device while it is on')
    const outside = this.#options.withMedium
    return outside === undefined ? act(this.#options.disk) : outside(act)
  }

  /** Cuts the power: what the guest had not flushed is lost. `said`: what the transcript calls it. */
  async powerCut(said = 'power cut'): Promise<void> {
    const machine = this.#machine
    if (machine === undefined) return
    this.#machine = undefined
    this.#shell = undefined
    this.#powerEnds(true)
    this.#console?.remark(`${said} ---`)
    await this.#console?.close()
    await machine.cut()
  }

  /** Waits for words on the console, from now on. A pattern may span at most 8 KiB. */
  async sees(pattern: RegExp, timeoutMs: number): Promise<string> {
    return this.#find(pattern, `${pattern}`, { timeoutMs, ...(this.signal && { signal: this.signal }) })
  }

  /** Words that come from now on, however many bytes come at once. */
  #find(pattern: RegExp, what: string, options: WaitOptions): Promise<string> {
    const console = this.console
    const begin = console.position()
    let next = begin
    const find = () => {
      const text = console.since(Math.max(begin, next - SEEN_AT_ONCE))
      next = console.position()
      return pattern.exec(text)?.[0]
    }
    return console.waitForText(find, what, begin, options)
  }

  /** Waits for the next event of one of these kinds; events of `fatal` kinds end the wait with an error. */
  async next(
    kinds: readonly BootEvent['kind'][],
    options: { timeoutMs: number; fatal?: readonly BootEvent['kind'][]; where?: (event: TimedEvent) => boolean },
  ): Promise<TimedEvent> {
    const accept = (event: TimedEvent) => kinds.includes(event.kind) && (options.where?.(event) ?? true)
    const wait = { ...options, ...(this.signal && { signal: this.signal }) }
    const event = await this.console.waitForEvent(accept, kinds.join(' or '), this.#seen, wait)
    this.#seen = event.next
    if (event.kind === 'boot') this.#shell = undefined
    return event
  }

  /** Forgets what was seen so far: the next wait looks only at what comes from now on. */
  skipSeen(): void {
    this.#seen = this.console.eventCount
  }

  /** The next time the boot loader hands over: which slot and why. */
  async nextBoot(timeoutMs: number): Promise<BootReport> {
    const event = await this.next(['boot'], { timeoutMs })
    const { slot = '?', boot = '?', why = '?' } = event.fields
    return { slot, boot, why, at: event.at }
  }

  /** Runs a command on the device, logging in first where needed. */
  async run(command: string, options: CommandOptions = {}): Promise<CommandResult> {
    const shell = await this.#openShell()
    return shell.run(command, { ...(this.signal && { signal: this.signal }), ...options })
  }

  async #openShell(): Promise<Shell> {
    // It started anew, and nobody waited for that.
    const anew = (kind: BootEvent['kind']) => kind === 'firmware' || kind === 'boot' || kind === 'kernel'
    if (this.#shell !== undefined && this.console.eventsSince(this.#shellSince).some(({ kind }) => anew(kind)))
      this.#shell = undefined
    if (this.#shell === undefined) {
      if (this.#options.login !== undefined) await this.#login(this.#options.login)
      const shell = new Shell(this.console)
      const over = new AbortController()
      const signal = this.signal === undefined ? over.signal : AbortSignal.any([over.signal, this.signal])
      try {
        await Promise.race([shell.open({ timeoutMs: SHELL_MS, signal }), this.#refusal(signal)])
      } finally {
        over.abort()
      }
      this.#shell = shell
      this.#shellSince = this.console.eventCount
    }
    return this.#shell
  }

  /** Ends only when the device does not let us in. @throws DutError */
  async #refusal(signal: AbortSignal): Promise<never> {
    // Longer than a shell may take: that it did not come is the better word.
    const options = { timeoutMs: 2 * SHELL_MS, signal }
    const word = await this.#find(/Login (?:incorrect|timed out)/, 'a refusal', options).catch(() => undefined)
    if (word === undefined) return new Promise(() => {})
    throw new DutError(`${word}: is the user or the password of this place another?`)
  }

  /** Runs `bistable ARGS --json`. */
  async bistable(args: string, options: CommandOptions = {}): Promise<Answer> {
    const { code, output } = await this.run(`bistable ${args} --json`, { timeoutMs: 480_000, ...options })
    return readAnswer(args, code, output)
  }

  /** Types a line and does not wait for an answer, as for a command that ends the session. */
  async type(line: string): Promise<void> {
    this.console.remark(`> ${line}`)
    await this.console.write(`${line}\n`)
  }

  /** An orderly reboot, asked of the agent; waits look only at what comes after it. */
  async reboot(): Promise<void> {
    this.skipSeen()
    this.#shell = undefined
    await this.type('bistable reboot')
  }

  /** `bistable status --json` of the device. */
  async status(): Promise<Record<string, unknown>> {
    const { code, body } = await this.bistable('status')
    if (code !== 0) throw new DutError(`status ended with ${code}: ${JSON.stringify(body)}`)
    return body
  }

  async #login({ user, password }: { user: string; password: string }): Promise<void> {
    const options = (timeoutMs: number) => ({ timeoutMs, ...(this.signal && { signal: this.signal }) })
    const prompt = this.#find(/\S+ login: /, 'a login prompt', options(240_000))
    await Promise.all([prompt, this.console.write('\n')])
    const question = this.#find(/Password: /, 'a password prompt', options(60_000))
    await Promise.all([question, this.console.write(`${user}\n`)])
    await this.console.write(`${password}\n`)
  }
}

/** The one JSON object that a command with `--json` prints, wherever other lines stand. Pure. @throws DutError */
export function readAnswer(args: string, code: number, output: string): Answer {
  const line = output.split('\n').findLast((text) => text.startsWith('{'))
  if (line === undefined) throw new DutError(`bistable ${args} ended with ${code} and no JSON: ${output.slice(-2000)}`)
  const body = JSON.parse(line) as Record<string, unknown>
  const error = body['error'] as { readonly code?: string } | undefined
  return { code, body, error: error?.code }
}
