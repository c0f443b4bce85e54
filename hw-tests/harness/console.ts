import { createWriteStream, type WriteStream } from 'node:fs'
import type { Duplex } from 'node:stream'
import { type BootEvent, type BootState, nextState, readLine } from './boot-states.ts'
import { Decoder } from './decoder.ts'
import { DutError, LabError } from './lab-error.ts'
import type { Modem } from './machine.ts'

/** The serial console: one reader, a timestamped transcript from the first byte, waits that a panic can end. */

export interface TimedEvent extends BootEvent {
  /** Milliseconds since power-on. */
  readonly at: number
}

export interface WaitOptions {
  readonly timeoutMs: number
  readonly signal?: AbortSignal
  /** Events that end the wait with an error, as soon as they are seen. */
  readonly fatal?: readonly BootEvent['kind'][]
  /** What the error says was waited, where this is the last of several waits for the same. */
  readonly ofMs?: number
}

const KEPT_LINES = 400
const KEPT_TEXT = 256 * 1024
const KEPT_EVENTS = 5_000
/** Of one transcript: a system that panics and starts again all night must not fill the disk. */
const MOST_LOG = 64 * 1024 * 1024
/** A port that takes no byte for so long takes none any more, in milliseconds. */
const WRITE_MS = 60_000
const MOST_REMARK = 200
const FRAME = /^<F[0-9A-F]{10} \d+\/\d+ /

export class Console {
  readonly #port: Duplex
  readonly #now: () => number
  readonly #modem: Modem | undefined
  #log: WriteStream | undefined
  #logged = 0
  readonly #writeMs: number
  #powerOn: number
  readonly #decoder = new Decoder()
  #lines: { at: number; text: string }[] = []
  #text = ''
  #textStart = 0
  #events: TimedEvent[] = []
  /** Events that are not kept any more. */
  #dropped = 0
  #state: BootState = 'off'
  #closed: Error | undefined
  #wake = new Set<() => void>()
  #watch: ((event: TimedEvent) => boolean) | undefined

  constructor(
    port: Duplex,
    options: {
      readonly transcript?: string
      readonly now?: () => number
      readonly modem?: Modem
      readonly writeMs?: number
    } = {},
  ) {
    this.#port = port
    this.#writeMs = options.writeMs ?? WRITE_MS
    this.#modem = options.modem
    this.#now = options.now ?? Date.now
    this.#powerOn = this.#now()
    if (options.transcript !== undefined) this.logTo(options.transcript)
    port.on('data', (bytes: Buffer) => this.#take(bytes))
    port.on('error', (cause: Error) => this.#end(new LabError(`the console failed: ${cause.message}`, { cause })))
    port.on('close', () => this.#end(new LabError('the console closed')))
    port.on('end', () => this.#end(new LabError('the console ended')))
  }

  get state(): BootState {
    return this.#state
  }

  /** The last 5000. */
  get events(): readonly TimedEvent[] {
    return this.#events
  }

  /** How many there were: where a wait for what comes from now on begins. */
  get eventCount(): number {
    return this.#dropped + this.#events.length
  }

  /** Those since such a count, as far as they are kept. */
  eventsSince(count: number): readonly TimedEvent[] {
    return this.#events.slice(Math.max(0, count - this.#dropped))
  }

  /** From now on an event that `bad` takes ends every wait at once, unless it is the very event waited for. */
  watchFor(bad: ((event: TimedEvent) => boolean) | undefined): void {
    this.#watch = bad
  }

  /** Marks the moment that all times count from. `restored`: no boot is seen, the system runs already. */
  markPowerOn(restored = false): void {
    this.#powerOn = this.#now()
    this.#note(restored ? '--- a saved state of the running device goes on ---' : '--- power on ---')
    this.#state = restored ? 'userspace' : 'off'
  }

  /** A line of the harness's own in the transcript: what it did, such as a command. Never taken for the device's. */
  remark(text: string): void {
    const line = text.replace(/[^\x20-\x7e]+/g, ' ').trim()
    this.#note(`--- ${line.length > MOST_REMARK ? `${line.slice(0, MOST_REMARK)} ...` : line}`)
  }

  /** The transcript goes to this file from now on; what it holds already stays. */
  logTo(transcript: string): void {
    this.#log?.end()
    this.#logged = 0
    this.#log = createWriteStream(transcript, { flags: 'a' })
    this.#log.on('error', (cause) => this.#end(new LabError(`the transcript: ${cause.message}`, { cause })))
  }

  /** A position in the stream; waits look only at what comes after it. */
  position(): number {
    return this.#textStart + this.#text.length
  }

  /** Bytes since a position, as far as they are kept (256 KiB). */
  since(position: number): string {
    return this.#text.slice(Math.max(0, position - this.#textStart))
  }

  /** The last lines, each with seconds since power-on; frames of the command protocol are left out. */
  tail(count = 40): string {
    const said = this.#lines.filter(({ text }) => text !== '' && !FRAME.test(text))
    const lines = said.slice(-count).map(({ at, text }) => `${(at / 1000).toFixed(2).padStart(8)}  ${text}`)
    if (this.#decoder.partial !== '') lines.push(`          ${this.#decoder.partial}`)
    return lines.join('\n')
  }

  /** @throws LabError when the port is gone, or takes no bytes for a minute */
  async write(text: string): Promise<void> {
    // An emulated 16550 has a 16-byte FIFO: paced writes lose nothing.
    for (let at = 0; at < text.length; at += 64) await this.#writePiece(text.slice(at, at + 64))
  }

  #writePiece(piece: string): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      const settle = (error?: Error) => {
        clearTimeout(clock)
        this.#wake.delete(ended)
        if (error === undefined) resolve()
        else reject(error)
      }
      const ended = () => this.#closed !== undefined && settle(this.#closed)
      const slow = () => settle(new LabError(`the console has taken no bytes for ${this.#writeMs / 1000} s`))
      const clock = setTimeout(slow, this.#writeMs)
      this.#wake.add(ended)
      if (ended() !== false) return
      this.#port.write(piece, (cause) =>
        settle(cause ? new LabError(`the console takes no bytes: ${cause.message}`, { cause }) : undefined),
      )
    })
  }

  /** Break and the modem lines. @throws LabError where the console is no real serial port */
  get modem(): Modem {
    if (this.#modem === undefined)
      throw new LabError('this console has no break and no modem lines: it is no serial port')
    return this.#modem
  }

  /** Waits for an event that `accept` takes, after `from` (as `eventCount` was then). Returns it and where the next wait begins. */
  waitForEvent(
    accept: (event: TimedEvent) => boolean,
    what: string,
    from: number,
    options: WaitOptions,
  ): Promise<TimedEvent & { readonly next: number }> {
    let next = from
    return this.#wait(what, options, () => {
      next = Math.max(next, this.#dropped)
      while (next < this.eventCount) {
        const event = this.#events[next++ - this.#dropped]
        if (event === undefined) break
        if (accept(event)) return { ...event, next }
        if (options.fatal?.includes(event.kind))
          throw new DutError(this.#explain(`${event.kind} while waiting for ${what}: ${event.line}`))
      }
      return undefined
    })
  }

  /** Waits until `match` finds what it wants in the bytes after `position`. It must look at a bounded window. */
  waitForText<T>(
    match: (text: string) => T | undefined,
    what: string,
    position: number,
    options: WaitOptions,
  ): Promise<T> {
    return this.#wait(what, options, () => match(this.since(position)))
  }

  async close(): Promise<void> {
    this.#closed ??= new LabError('the console was closed')
    this.#port.destroy()
    const log = this.#log
    this.#log = undefined
    await new Promise<void>((resolve) => (log === undefined ? resolve() : log.end(() => resolve())))
  }

  async #wait<T>(what: string, options: WaitOptions, poll: () => T | undefined): Promise<T> {
    const deadline = AbortSignal.timeout(options.timeoutMs)
    const stop = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal])
    let watched = this.eventCount
    for (;;) {
      const found = poll()
      if (found !== undefined) return found
      const bad = this.eventsSince(watched).find((event) => this.#watch?.(event) === true)
      watched = this.eventCount
      if (bad !== undefined) throw new DutError(this.#explain(`${bad.kind} while waiting for ${what}: ${bad.line}`))
      if (this.#closed !== undefined)
        throw new LabError(`${this.#closed.message} while waiting for ${what}\n${this.tail()}`)
      if (options.signal?.aborted) throw stopped(options.signal, what)
      if (deadline.aborted)
        throw new DutError(
          this.#explain(`${what} did not come within ${(options.ofMs ?? options.timeoutMs) / 1000} s`),
          {
            late: true,
          },
        )
      await new Promise<void>((resolve) => {
        const done = () => {
          this.#wake.delete(done)
          stop.removeEventListener('abort', done)
          resolve()
        }
        this.#wake.add(done)
        stop.addEventListener('abort', done)
      })
    }
  }

  #explain(sentence: string): string {
    return `${sentence}\nstate: ${this.#state}; the last console lines:\n${this.tail()}`
  }

  #take(bytes: Buffer): void {
    const text = bytes.toString('latin1')
    this.#text += text
    if (this.#text.length > 2 * KEPT_TEXT) {
      this.#textStart += this.#text.length - KEPT_TEXT
      this.#text = this.#text.slice(-KEPT_TEXT)
    }
    for (const line of this.#decoder.take(bytes)) this.#line(line)
    for (const wake of [...this.#wake]) wake()
  }

  #line(text: string): void {
    this.#note(text)
    const event = readLine(text)
    if (event === undefined) return
    this.#events.push({ ...event, at: this.#now() - this.#powerOn })
    if (this.#events.length > 2 * KEPT_EVENTS) {
      this.#dropped += this.#events.length - KEPT_EVENTS
      this.#events = this.#events.slice(-KEPT_EVENTS)
    }
    this.#state = nextState(this.#state, event)
  }

  #note(text: string): void {
    const at = this.#now() - this.#powerOn
    this.#lines.push({ at, text })
    if (this.#lines.length > KEPT_LINES) this.#lines.splice(0, this.#lines.length - KEPT_LINES)
    if (this.#log === undefined || this.#logged > MOST_LOG) return
    const line = `${(at / 1000).toFixed(3).padStart(9)} ${text}\n`
    this.#logged += line.length
    this.#log.write(line)
    if (this.#logged > MOST_LOG) this.#log.write('--- this transcript is full; what came behind it was not kept\n')
  }

  #end(error: Error): void {
    this.#closed ??= error
    for (const wake of [...this.#wake]) wake()
  }
}

/** A lease that was lost says so itself; a test that ran out of time is told what it was waiting for. */
function stopped(signal: AbortSignal, what: string): LabError {
  const why = signal.reason instanceof LabError ? `${signal.reason.message}; ` : ''
  return new LabError(`${why}stopped while waiting for ${what}`)
}
