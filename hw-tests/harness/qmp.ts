import { createConnection, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { LabError } from './lab-error.ts'

/** On an idle machine an answer takes milliseconds. */
const ANSWER_MS = 120_000

/** QEMU's control socket (QMP): one JSON object a line; commands answered in order. */
export class Qmp {
  readonly #socket: Socket
  #buffer = ''
  #closed = false
  /** Names of what happened by itself ("RESET", "WATCHDOG"), the last hundred. */
  readonly events: string[] = []
  #waiting: { resolve: (value: unknown) => void; reject: (error: Error) => void }[] = []

  readonly #answerMs: number

  private constructor(socket: Socket, answerMs: number) {
    this.#socket = socket
    this.#answerMs = answerMs
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.#take(text))
    const end = () => {
      this.#closed = true
      for (const { reject } of this.#waiting.splice(0)) reject(new LabError('the emulator closed its control socket'))
    }
    socket.on('close', end)
    socket.on('error', end)
  }

  /** Connects, trying for up to `timeoutMs`: the emulator makes its socket shortly after it starts. */
  static async connect(path: string, timeoutMs: number, answerMs = ANSWER_MS): Promise<Qmp> {
    const deadline = Date.now() + timeoutMs
    for (;;) {
      try {
        const socket = await new Promise<Socket>((resolve, reject) => {
          const s = createConnection(path, () => resolve(s))
          s.once('error', reject)
        })
        const qmp = new Qmp(socket, answerMs)
        await qmp.send('qmp_capabilities')
        return qmp
      } catch (error) {
        if (Date.now() > deadline) throw new LabError(`no control socket at ${path}`, { cause: error })
        await sleep(50)
      }
    }
  }

  /** @throws LabError also when there is no answer within two minutes: the emulator hangs, and is not used any more */
  send(execute: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    // Nobody would answer: an emulator that died must not look like one that is slow.
    if (this.#closed) return Promise.reject(new LabError(`the emulator is gone; ${execute} was not sent`))
    return new Promise((resolve, reject) => {
      const late = () => {
        reject(new LabError(`the emulator did not answer to ${execute} within ${this.#answerMs / 1000} s`))
        // A late answer would be taken for the next one's.
        this.#socket.destroy()
      }
      const clock = setTimeout(late, this.#answerMs)
      const settled =
        <T>(settle: (value: T) => void) =>
        (value: T) => {
          clearTimeout(clock)
          settle(value)
        }
      this.#waiting.push({ resolve: settled(resolve), reject: settled(reject) })
      this.#socket.write(`${JSON.stringify(args === undefined ? { execute } : { execute, arguments: args })}\n`)
    })
  }

  close(): void {
    this.#socket.destroy()
  }

  #take(text: string): void {
    this.#buffer += text
    let end = this.#buffer.indexOf('\n')
    while (end >= 0) {
      const message = JSON.parse(this.#buffer.slice(0, end)) as {
        return?: unknown
        error?: { desc: string }
        event?: string
      }
      this.#buffer = this.#buffer.slice(end + 1)
      if (message.event !== undefined && this.events.push(message.event) > 100) this.events.shift()
      if (message.error !== undefined)
        this.#waiting.shift()?.reject(new LabError(`the emulator refused: ${message.error.desc}`))
      else if ('return' in message) this.#waiting.shift()?.resolve(message.return)
      end = this.#buffer.indexOf('\n')
    }
  }
}
